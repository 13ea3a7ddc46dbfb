//! `catelier base`: fetch a base, and see what it holds.

use std::fmt::Display;

use catelier_workflows::Session;
use catelier_workflows::base::{BaseSummary, fetch, inspect};

use crate::cli::BaseCommand;
use crate::failure::Outcome;
use crate::{signals, terminal};

pub(super) fn run(command: &BaseCommand, session: &Session<'_>) -> Outcome<()> {
    match command {
        BaseCommand::Fetch { id } => run_fetch(id, session),
        BaseCommand::Inspect { base, json: true } => terminal::json(&inspect(base, session)?),
        BaseCommand::Inspect { base, json: false } => terminal::lines(describe(&inspect(base, session)?)),
    }
}

fn run_fetch(id: &str, session: &Session<'_>) -> Outcome<()> {
    signals::end_at_once("stopped; what has arrived is kept, and the same command fetches the rest".into());
    match fetch(id, session)?.path() {
        Some(path) => terminal::data(&path.display().to_string()),
        None => Ok(()),
    }
}

fn describe(summary: &BaseSummary) -> [String; 8] {
    let targets = joined(summary.modules_by_target.iter());
    let fingerprint = summary.fingerprint.clone().unwrap_or_else(|| "none: there are no weights".to_owned());
    let lines = [
        ("name", summary.name.clone()),
        ("family", summary.family.to_owned()),
        ("predicts", summary.prediction.to_owned()),
        ("resolution", format!("{} px", summary.resolution_px)),
        ("tokens", summary.tokens.to_string()),
        ("parameters", joined(summary.parameters.iter())),
        ("modules", format!("{} in the UNet ({targets})", summary.modules)),
        ("fingerprint", fingerprint),
    ];
    lines.map(|(name, value)| format!("{name:<12} {value}"))
}

/// `attention 32, linears 100`.
fn joined(counts: impl Iterator<Item = (impl Display, impl Display)>) -> String {
    counts.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}
