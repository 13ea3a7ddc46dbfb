//! The two programs, and their reports.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::case::Case;
use crate::release;

const PEER: &str = "recipe/bench_peer.py";

/// The compared fields of a program's report.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Answer {
    cpu_seconds: Option<Median>,
    memory_bytes: Memory,
    #[serde(default)]
    pub(super) gflop: Option<f64>,
    /// The best rate of a large product, by element type.
    matrix_product: BTreeMap<String, Option<Rate>>,
    /// Only in the Python program's report.
    #[serde(default)]
    pub(super) versions: BTreeMap<String, String>,
    /// Only in Catelier's report.
    #[serde(default)]
    pub(super) version: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Median {
    median: f64,
}

#[derive(Debug, Clone, Deserialize)]
struct Memory {
    peak: Option<u64>,
}

/// Operations in units of 10⁹ per second of CPU time.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Rate {
    gflop_per_cpu_second: Option<f64>,
}

impl Answer {
    /// Median CPU time of an iteration.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let seconds = self.cpu_seconds.as_ref().context("this system does not tell CPU time")?.median;
        anyhow::ensure!(seconds > 0.0, "the work took no measurable time; choose a larger one");
        Ok(seconds)
    }

    /// Peak memory during the iterations.
    pub(super) fn peak_bytes(&self) -> Result<f64> {
        Ok(self.memory_bytes.peak.context("this system does not tell the peak of memory")? as f64)
    }

    /// The best rate of a large product of these elements.
    pub(super) fn product_rate(&self, dtype: &str) -> Option<f64> {
        self.matrix_product.get(dtype)?.as_ref()?.gflop_per_cpu_second
    }
}

/// The paths of the programs, and their number of threads.
pub(super) struct Programs {
    python: PathBuf,
    catelier: PathBuf,
    threads: usize,
}

impl Programs {
    /// Finds the programs; builds Catelier unless its path is given.
    pub(super) fn find(python: &Path, catelier: Option<&Path>, threads: usize) -> Result<Self> {
        let catelier = catelier.map_or_else(|| release::build(&[], "catelier"), |path| Ok(path.to_path_buf()))?;
        Ok(Self { python: python.to_path_buf(), catelier, threads })
    }

    pub(super) fn catelier(&self, case: &Case) -> Result<Answer> {
        answer(Command::new(&self.catelier).args(case.ours(self.threads).split(' ')))
    }

    pub(super) fn peer(&self, case: &Case) -> Result<Answer> {
        let mut python = Command::new(&self.python);
        python.arg(release::repository().join(PEER));
        answer(python.args(case.theirs(self.threads).split(' ')))
    }
}

fn answer(command: &mut Command) -> Result<Answer> {
    let name = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{name} did not print the JSON that was expected"))
}
