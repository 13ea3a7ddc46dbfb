//! `catelier base`: fetch a base, and see what it holds.

use catelier_workflows::Session;
use catelier_workflows::base::{BaseSummary, fetch, inspect};

use crate::cli::BaseCommand;
use crate::failure::Outcome;
use crate::terminal;

pub(super) fn run(command: &BaseCommand, session: &Session<'_>) -> Outcome<()> {
    match command {
        BaseCommand::Fetch { id } => match fetch(id, session)?.path() {
            Some(path) => terminal::data(&path.display().to_string()),
            None => Ok(()),
        },
        BaseCommand::Inspect { base, json: true } => terminal::json(&inspect(base, session)?),
        BaseCommand::Inspect { base, json: false } => terminal::data(&describe(&inspect(base, session)?)),
    }
}

fn describe(summary: &BaseSummary) -> String {
    let targets = summary.modules_by_target.iter();
    let targets = targets.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
    format!(
        "name         {}\nfamily       {}\npredicts     {}\nresolution   {} px\ntokens       {}\nmodules      {} in the UNet ({targets})\nfingerprint  {}",
        summary.name,
        summary.family,
        summary.prediction,
        summary.resolution_px,
        summary.tokens,
        summary.modules,
        summary.fingerprint,
    )
}
