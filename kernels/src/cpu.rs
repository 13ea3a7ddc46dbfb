//! The choice of kernels by the instructions of the CPU.

use std::sync::atomic::{AtomicBool, Ordering};

static PORTABLE_ONLY: AtomicBool = AtomicBool::new(false);

/// A kind of kernels for f32. The kinds differ in rounding, in the layout of weights, and in the number of products:
/// portable kernels also multiply margins, and use Winograd's method for other convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// For every CPU.
    Portable,
    /// For CPUs with 512-bit vectors (AVX-512).
    Wide,
}

/// The kernels that new layers will use.
pub fn kernels() -> Kernels {
    if crate::has_wide_vectors() { Kernels::Wide } else { Kernels::Portable }
}

/// Whether bf16 weights are multiplied as bf16; otherwise they are widened to f32.
pub fn multiplies_bf16() -> bool {
    crate::has_bf16_instructions()
}

/// Selects the portable kernels from now on, even on a CPU with wider instructions.
///
/// For tests of the results on other CPUs. It applies to the whole process; existing layers keep their kind.
#[doc(hidden)]
pub fn use_portable_kernels(portable: bool) {
    PORTABLE_ONLY.store(portable, Ordering::Relaxed);
}

/// Whether wider instructions are disabled.
pub(crate) fn is_portable_only() -> bool {
    PORTABLE_ONLY.load(Ordering::Relaxed)
}
