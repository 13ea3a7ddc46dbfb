//! Kills that no program can catch: after some time, or at a system call.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// System calls that change files; the ones that a machine does not have are skipped for their `?`.
const WRITING: &str = "write,writev,pwrite64,pwritev,ftruncate,fsync,fdatasync,renameat,renameat2,unlinkat,mkdirat,symlinkat,\
                       linkat,fchmod,fallocate,copy_file_range,flock,?rename,?unlink,?mkdir,?rmdir,?symlink,?link";

/// The moment of a kill.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moment {
    /// So long after the start.
    After(Duration),
    /// Before the system call of this number, from 1, among those of a thread that write.
    AtCall(usize),
}

/// Whether strace is there and may trace.
pub(super) fn can_trace() -> bool {
    let traced = Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=write", "true"]).output();
    traced.is_ok_and(|output| output.status.success())
}

/// Number of writing system calls of the thread that makes most of them, in an undisturbed run of `command`.
pub(super) fn calls(command: &Command, log: &Path) -> Result<usize> {
    let mut traced = under_strace(command, &["-o", &log.to_string_lossy(), "-e", &format!("trace={WRITING}")]);
    let ran = traced.output().context("cannot run `strace`")?;
    ensure!(ran.status.success(), "failed under strace:\n{}", String::from_utf8_lossy(&ran.stderr));
    let text = fs::read_to_string(log).context("strace left no log")?;
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for thread in text.lines().filter(|line| !line.contains("resumed>")).filter_map(|line| line.split(' ').next()) {
        *counts.entry(thread).or_default() += 1;
    }
    Ok(counts.into_values().max().unwrap_or(0))
}

/// Runs `command` and kills it; whether the kill landed before the command came to its end.
pub(super) fn run_and_kill(command: &mut Command, moment: Moment) -> Result<bool> {
    match moment {
        Moment::After(delay) => {
            let child =
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot run the program")?;
            kill_after(child, delay)
        }
        Moment::AtCall(call) => {
            let inject = format!("inject={WRITING}:signal=KILL:when={call}");
            let output = under_strace(command, &["-o", "/dev/null", "-e", &inject]).output();
            // strace ends as its program did.
            Ok(killed(output.context("cannot run `strace`")?.status))
        }
    }
}

fn kill_after(mut child: Child, delay: Duration) -> Result<bool> {
    let started = Instant::now();
    while started.elapsed() < delay {
        if let Some(status) = child.try_wait()? {
            return Ok(killed(status));
        }
        sleep(Duration::from_millis(1).min(delay.saturating_sub(started.elapsed())));
    }
    child.kill()?;
    Ok(killed(child.wait()?))
}

#[cfg(unix)]
fn killed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    const KILL: i32 = 9;
    status.signal() == Some(KILL)
}

#[cfg(not(unix))]
fn killed(status: ExitStatus) -> bool {
    !status.success()
}

/// The same command under strace, all threads followed.
fn under_strace(command: &Command, options: &[&str]) -> Command {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq"]).args(options).arg(command.get_program()).args(command.get_args()).env_clear();
    traced.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // To find strace itself.
    traced.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    if let Some(folder) = command.get_current_dir() {
        traced.current_dir(folder);
    }
    traced
}
