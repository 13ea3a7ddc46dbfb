//! The two programs, and what they answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::case::Case;

const PEER: &str = "recipe/bench_peer.py";

/// What either program prints, as far as it is compared.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Answer {
    cpu_seconds: Option<Median>,
    memory_bytes: Memory,
    #[serde(default)]
    pub(super) gflop: Option<f64>,
    /// The best rate of a large product, by element type.
    pub(super) matrix_product: BTreeMap<String, Option<Rate>>,
    /// Of the Python libraries.
    #[serde(default)]
    pub(super) versions: BTreeMap<String, String>,
    /// Of Catelier.
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

/// Operations in units of 10⁹ per second of processor time.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Rate {
    pub(super) gflop_per_cpu_second: Option<f64>,
}

impl Answer {
    /// Median processor time of an iteration.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let seconds = self.cpu_seconds.as_ref().context("this system does not tell processor time")?.median;
        anyhow::ensure!(seconds > 0.0, "the work took no measurable time; choose a larger one");
        Ok(seconds)
    }

    /// Most memory held during the iterations.
    pub(super) fn peak_bytes(&self) -> Result<f64> {
        Ok(self.memory_bytes.peak.context("this system does not tell the peak of memory")? as f64)
    }
}

/// Where the programs are.
pub(super) struct Programs {
    python: PathBuf,
    catelier: PathBuf,
}

impl Programs {
    /// Builds Catelier unless it is given.
    pub(super) fn find(python: &Path, catelier: Option<&Path>) -> Result<Self> {
        let catelier = catelier.map_or_else(build, |path| Ok(path.to_path_buf()))?;
        Ok(Self { python: python.to_path_buf(), catelier })
    }

    pub(super) fn catelier(&self, case: &Case) -> Result<Answer> {
        answer(Command::new(&self.catelier).args(case.ours().split(' ')))
    }

    pub(super) fn peer(&self, case: &Case) -> Result<Answer> {
        answer(Command::new(&self.python).arg(root().join(PEER)).args(case.theirs().split(' ')))
    }
}

/// The repository.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The release build of the default packages, which is what people build.
fn build() -> Result<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--message-format", "json-render-diagnostics"]).current_dir(root());
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the release build failed");
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let executables = messages.filter(|message| message.pointer("/target/name") == Some(&"catelier".into()));
    let path = executables.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
    path.context("the release build made no `catelier`")
}

fn answer(command: &mut Command) -> Result<Answer> {
    let name = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{name} did not print the JSON that was expected"))
}
