//! Memory that is left for this process, and the allocator that hands it out.

mod available;

pub(crate) use available::available;

/// Gives back what loading a model has freed, and keeps from now on what is freed, for the tensors to come: memory that is
/// given back after a while and taken again is cleared again page by page, which was a fifth of a training step.
#[expect(unsafe_code, reason = "the allocator's options are set by C functions")]
pub(crate) fn settle() {
    /// `mi_option_purge_delay`, in milliseconds.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const NEVER: std::ffi::c_long = -1;
    // SAFETY: the other threads wait for work while a model has just been loaded.
    unsafe {
        libmimalloc_sys::mi_collect(true);
        libmimalloc_sys::mi_option_set(PURGE_DELAY, NEVER);
    }
}
