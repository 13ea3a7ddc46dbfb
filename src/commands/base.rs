//! `catelier base`: what a base holds.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use catelier_pipelines::base::BaseModel;
use serde::Serialize;

use crate::base_source::{self, BaseSource};
use crate::cli::BaseCommand;
use crate::failure::Outcome;
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

/// What `base inspect` tells.
#[derive(Serialize)]
struct BaseSummary {
    name: String,
    family: String,
    prediction: String,
    resolution_px: usize,
    tokens: usize,
    fingerprint: String,
    modules: usize,
    modules_by_target: BTreeMap<&'static str, usize>,
}

fn inspect(base: &str, json: bool) -> Outcome<()> {
    let model = BaseSource::parse(base)?.load(DType::F32, &Device::Cpu)?;
    let summary = summarise(&model);
    if json {
        return terminal::json(&summary);
    }
    let targets = summary.modules_by_target.iter();
    let targets = targets.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
    terminal::data(&format!(
        "name         {}\nfamily       {}\npredicts     {}\nresolution   {} px\ntokens       {}\nmodules      {} in the UNet ({targets})\nfingerprint  {}",
        summary.name,
        summary.family,
        summary.prediction,
        summary.resolution_px,
        summary.tokens,
        summary.modules,
        summary.fingerprint,
    ))
}

fn summarise(model: &BaseModel) -> BaseSummary {
    use catelier_adapters::Targets;
    let count = |targets: Targets| targets.select(model.unet.modules()).map_or(0, |modules| modules.len());
    BaseSummary {
        name: model.name.clone(),
        family: model.family.to_string(),
        prediction: format!("{:?}", model.schedule.prediction()).to_lowercase(),
        resolution_px: base_source::resolution(model),
        tokens: model.text.tokenizer().max_length(),
        fingerprint: model.fingerprint.clone(),
        modules: model.unet.modules().len(),
        modules_by_target: BTreeMap::from([
            ("attention", count(Targets::attention())),
            ("linears", count(Targets::linears())),
            ("convolutions", count(Targets::convolutions())),
        ]),
    }
}
