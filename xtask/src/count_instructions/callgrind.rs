//! Running a program under callgrind.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

/// A kernel that the program can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) shape: String,
}

/// An error unless callgrind is installed.
pub(super) fn check() -> Result<()> {
    let version = Command::new("valgrind").arg("--version").output();
    if version.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    bail!(
        "cannot run `valgrind`, which counts the instructions; it is a package of most systems (`apt install valgrind`)"
    )
}

/// The kernels of the program: a name, a tab and a shape on each line.
pub(super) fn list(program: &Path) -> Result<Vec<Kernel>> {
    let output = Command::new(program).output().with_context(|| format!("cannot run `{}`", program.display()))?;
    Ok(parse_list(&success(program, output)?.stdout))
}

fn parse_list(stdout: &[u8]) -> Vec<Kernel> {
    let lines = String::from_utf8_lossy(stdout);
    let pairs = lines.lines().filter_map(|line| line.split_once('\t'));
    pairs.map(|(name, shape)| Kernel { name: name.into(), shape: shape.into() }).collect()
}

impl Kernel {
    /// Instructions of a call: the difference between a run with one call and a run with `calls` more, which cancels
    /// the work that a program does once.
    pub(super) fn instructions_per_call(&self, program: &Path, pass: &str, calls: u64) -> Result<u64> {
        let (one, more) = (self.instructions(program, pass, 1)?, self.instructions(program, pass, 1 + calls)?);
        ensure!(more > one, "`{}` {pass} took {one} instructions once and {more} for {} times", self.name, 1 + calls);
        Ok((more - one) / calls)
    }

    /// Instructions of the whole program.
    fn instructions(&self, program: &Path, pass: &str, times: u64) -> Result<u64> {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
        valgrind.args([&self.name, pass, &times.to_string()]);
        // candle's own threads would spin while they wait. Large blocks are mapped anew, since the kernel clears them:
        // the C library would clear reused blocks itself, more or less of them from run to run.
        valgrind.envs([("CANDLE_NUM_THREADS", "1"), ("MALLOC_MMAP_THRESHOLD_", "16384")]);
        let output = success(program, valgrind.output().context("cannot run `valgrind`")?)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        collected(&stderr).with_context(|| format!("callgrind told no count:\n{stderr}"))
    }
}

fn success(program: &Path, output: Output) -> Result<Output> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` failed ({}):\n{}", program.display(), output.status, stderr.trim_end());
    Ok(output)
}

/// The total in callgrind's final line, `==7== Collected : 123`.
fn collected(stderr: &str) -> Option<u64> {
    let mut totals = stderr.lines().filter_map(|line| line.split_once("Collected :"));
    totals.next_back()?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_read_from_callgrinds_last_words() {
        let stderr = "==7== Callgrind, a call-graph generating cache profiler\n==7== \n==7== Events    : Ir\n\
                      ==7== Collected : 8123456789\n==7== \n==7== I   refs:      8,123,456,789\n";
        assert_eq!(collected(stderr), Some(8_123_456_789));
        assert_eq!(collected("valgrind: no such tool\n"), None);
    }

    #[test]
    fn kernels_are_listed_by_name_and_shape() {
        let kernel = |name: &str, shape: &str| Kernel { name: name.into(), shape: shape.into() };
        let expected = [kernel("linear", "320 to 320, 64 rows"), kernel("geglu", "256 rows of 2560")];
        assert_eq!(parse_list(b"linear\t320 to 320, 64 rows\ngeglu\t256 rows of 2560\n"), expected);
    }
}
