//! Memory and CPU time of this process, from the operating system. Linux reports memory, Unix reports CPU time.

use std::io::Write;

/// Peak memory of the process so far, or since [`forget_peak`], in bytes; `None` if the system does not report it.
pub fn peak_bytes() -> Option<u64> {
    status("VmHWM:")
}

/// Memory of the process now, in bytes; `None` if the system does not report it.
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// Resets [`peak_bytes`] to the present memory; `None` if the system cannot do it.
pub fn forget_peak() -> Option<()> {
    /// Resets the peak of the resident set (`man 5 proc_pid_clear_refs`).
    const RESET_PEAK: &[u8] = b"5";
    let mut file = std::fs::OpenOptions::new().write(true).open("/proc/self/clear_refs").ok()?;
    file.write_all(RESET_PEAK).ok()
}

/// The value of `key` in `/proc/self/status`, in bytes.
fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    Some(kibibytes * 1024)
}

/// CPU time of this process so far in seconds, user and system, over all threads; `None` if the system does not report
/// it.
#[cfg(unix)]
pub fn cpu_seconds() -> Option<f64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).ok()?;
    Some(std::time::Duration::from(time).as_secs_f64())
}

/// CPU time of this process so far in seconds; `None` on this system.
#[cfg(not(unix))]
pub fn cpu_seconds() -> Option<f64> {
    None
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    #[test]
    fn work_takes_cpu_time() {
        let before = super::cpu_seconds().unwrap();
        let sum: u64 = (0..3_000_000u64).map(std::hint::black_box).sum();
        assert!(sum > 0 && super::cpu_seconds().unwrap() > before);
    }
}
