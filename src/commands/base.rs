//! `catelier base`: what a base holds.

use std::collections::BTreeMap;

use catelier_adapters::{Component, Prediction};
use catelier_pipelines::base::BaseConfig;
use catelier_pipelines::error::Error;
use serde::Serialize;

use crate::base_source::{self, BaseSource};
use crate::cli::BaseCommand;
use crate::failure::{Blame, Outcome};
use crate::terminal;

pub(super) fn run(command: &BaseCommand) -> Outcome<()> {
    match command {
        BaseCommand::Fetch { id } => fetch(id),
        BaseCommand::Inspect { base, json } => inspect(base, *json),
    }
}

fn fetch(id: &str) -> Outcome<()> {
    let files = base_source::fetch(id)?;
    match files.path() {
        Some(path) => terminal::data(&path.display().to_string()),
        None => Ok(()),
    }
}

/// The description of a base that `base inspect` prints.
#[derive(Serialize)]
struct BaseSummary {
    name: String,
    family: &'static str,
    prediction: &'static str,
    resolution_px: usize,
    tokens: usize,
    /// `None` without weights.
    fingerprint: Option<String>,
    parameters: BTreeMap<Component, u64>,
    modules: usize,
    modules_by_target: BTreeMap<&'static str, usize>,
}

fn inspect(base: &str, json: bool) -> Outcome<()> {
    let files = BaseSource::parse(base)?.files()?;
    let config = base_source::config(&files)?;
    let fingerprint = match config.fingerprint(&files) {
        Err(Error::MissingWeights { .. }) => None,
        found => Some(found.request("cannot read the base")?),
    };
    let summary = summarise(&config, fingerprint);
    if json {
        return terminal::json(&summary);
    }
    terminal::data(&summary.table())
}

fn summarise(config: &BaseConfig, fingerprint: Option<String>) -> BaseSummary {
    use catelier_adapters::Targets;
    let of_unet = format!("{}.", Component::Unet);
    let modules: Vec<_> = config.modules().into_iter().filter(|module| module.path.starts_with(&of_unet)).collect();
    let count = |targets: Targets| targets.select(&modules).map_or(0, |modules| modules.len());
    BaseSummary {
        name: config.name.clone(),
        family: config.family().id(),
        prediction: match config.prediction() {
            Prediction::Epsilon => "epsilon",
            Prediction::Velocity => "velocity",
        },
        resolution_px: config.resolution(),
        tokens: config.tokens(),
        fingerprint,
        parameters: config.parameters(),
        modules: modules.len(),
        modules_by_target: BTreeMap::from([
            ("attention", count(Targets::attention())),
            ("linears", count(Targets::linears())),
            ("convolutions", count(Targets::convolutions())),
        ]),
    }
}

impl BaseSummary {
    fn table(&self) -> String {
        let targets = self.modules_by_target.iter();
        let targets = targets.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
        let parameters = self.parameters.iter();
        let parameters = parameters.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
        let lines = [
            ("name", self.name.clone()),
            ("family", self.family.to_owned()),
            ("predicts", self.prediction.to_owned()),
            ("resolution", format!("{} px", self.resolution_px)),
            ("tokens", self.tokens.to_string()),
            ("parameters", parameters),
            ("modules", format!("{} in the UNet ({targets})", self.modules)),
            ("fingerprint", self.fingerprint.clone().unwrap_or_else(|| "none: there are no weights".to_owned())),
        ];
        lines.map(|(name, value)| format!("{name:<12} {value}")).join("\n")
    }
}
