//! Which instructions of the processor the kernels use.

use std::sync::atomic::{AtomicBool, Ordering};

static PORTABLE_ONLY: AtomicBool = AtomicBool::new(false);

/// The kinds of kernels there are for f32. They differ in rounding, in how weights are kept, and in how many products
/// they make: with margins that are computed in vain, or filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// For every processor.
    Portable,
    /// For processors with 512-bit vectors (AVX-512).
    Wide,
}

/// The kernels that layers made now will use.
pub fn kernels() -> Kernels {
    if crate::has_wide_vectors() { Kernels::Wide } else { Kernels::Portable }
}

/// Whether weights of bf16 are multiplied as they are; they are widened to f32 otherwise.
pub fn multiplies_bf16() -> bool {
    crate::has_bf16_instructions()
}

/// From now on the portable kernels are used even where the processor could do better, or no longer.
///
/// For tests of what other processors do. It holds for the whole process; layers keep the kind they were made with.
#[doc(hidden)]
pub fn use_portable_kernels(portable: bool) {
    PORTABLE_ONLY.store(portable, Ordering::Relaxed);
}

/// Whether wider instructions are to be left alone.
pub(crate) fn is_portable_only() -> bool {
    PORTABLE_ONLY.load(Ordering::Relaxed)
}
