//! What the operating system says about the memory of this process; Linux tells, others do not.

use std::io::Write;

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

/// Most memory that the process has held so far, or since [`forget_peak`], in bytes; `None` where the system does not
/// tell.
pub(crate) fn peak_bytes() -> Option<u64> {
    status("VmHWM:")
}

/// Memory that the process holds now, in bytes; `None` where the system does not tell.
pub(crate) fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// Lets [`peak_bytes`] begin anew at what is held now; `None` where the system cannot.
pub(crate) fn forget_peak() -> Option<()> {
    /// Resets the peak of the resident set (`man 5 proc_pid_clear_refs`).
    const RESET_PEAK: &[u8] = b"5";
    let mut file = std::fs::OpenOptions::new().write(true).open("/proc/self/clear_refs").ok()?;
    file.write_all(RESET_PEAK).ok()
}

/// A line of `/proc/self/status`, in bytes.
fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    Some(kibibytes * 1024)
}
