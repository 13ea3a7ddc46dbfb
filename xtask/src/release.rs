//! Release builds of programs of this repository.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The repository's root.
pub(crate) fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs `cargo build --release` with `arguments`; returns the path of the program called `target`.
pub(crate) fn build(arguments: &[&str], target: &str) -> Result<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--message-format", "json-render-diagnostics"]).args(arguments);
    let output = cargo.current_dir(repository()).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the release build of `{target}` failed");
    let lines = String::from_utf8_lossy(&output.stdout);
    let messages = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let executables = messages.filter(|message| message.pointer("/target/name") == Some(&target.into()));
    let path = executables.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
    path.with_context(|| format!("the release build made no `{target}`"))
}
