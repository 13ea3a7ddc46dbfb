//! Which instructions of the CPU the kernels use.

use std::sync::atomic::{AtomicBool, Ordering};

static PORTABLE_ONLY: AtomicBool = AtomicBool::new(false);

/// A kind of kernels for f32. Kinds differ in rounding, in the layout of weights, and in the number of products: portable
/// kernels also multiply margins, and filter other convolutions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// For every CPU.
    Portable,
    /// For CPUs with 512-bit vectors (AVX-512).
    Wide,
}

/// The kernels that layers made now will use.
pub fn kernels() -> Kernels {
    if crate::has_wide_vectors() { Kernels::Wide } else { Kernels::Portable }
}

/// Whether weights of bf16 are multiplied as bf16; otherwise they are widened to f32.
pub fn multiplies_bf16() -> bool {
    crate::has_bf16_instructions()
}

/// Whether the portable kernels are used from now on even on a CPU that has wider instructions.
///
/// For tests that show the results of other CPUs. It holds for the whole process; layers keep the kind they were made with.
#[doc(hidden)]
pub fn use_portable_kernels(portable: bool) {
    PORTABLE_ONLY.store(portable, Ordering::Relaxed);
}

/// Whether wider instructions must not be used.
pub(crate) fn is_portable_only() -> bool {
    PORTABLE_ONLY.load(Ordering::Relaxed)
}
