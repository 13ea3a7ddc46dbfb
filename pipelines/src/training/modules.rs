//! The modules that a run trains.

use std::collections::BTreeSet;

use catelier_adapters::{Adapter, ModuleInfo};

use super::{TrainConfig, TrainError};
use crate::models::base::BaseModel;

/// The modules from which the targets of `config` select: those of the UNet, and those of the text encoders if they are
/// trained.
///
/// # Errors
/// [`TrainError::Setting`] if the text encoders are trained and the targets select none of their modules.
pub(super) fn trained_modules(base: &BaseModel, config: &TrainConfig) -> Result<Vec<ModuleInfo>, TrainError> {
    let mut modules = base.unet.modules().to_vec();
    if config.train_text_encoder {
        let text = base.text.conditioning_modules();
        if !text.iter().any(|module| config.targets.chooses(module)) {
            let rule = "must select a layer of the text encoder too, such as `attention` or `q_proj`, where \
                        `train_text_encoder` is on";
            return Err(TrainError::setting("targets", &config.targets, rule));
        }
        modules.extend(text);
    }
    Ok(modules)
}

/// Refuses a start adapter if the targets of `config` select other modules than it adapts.
///
/// # Errors
/// [`TrainError::StartMismatch`] names the modules that differ.
pub(super) fn check_start(base: &BaseModel, config: &TrainConfig, start: &Adapter) -> Result<(), TrainError> {
    let modules = trained_modules(base, config)?;
    let selected: BTreeSet<&str> =
        config.targets.select(&modules)?.into_iter().map(|module| module.path.as_str()).collect();
    let adapted: BTreeSet<&str> = start.iter().map(|(path, _)| path).collect();
    if selected == adapted {
        return Ok(());
    }
    let names = |left: &BTreeSet<&str>, right: &BTreeSet<&str>| -> Vec<String> {
        left.difference(right).map(|path| (*path).to_owned()).collect()
    };
    Err(TrainError::StartMismatch {
        targets: config.targets.to_string(),
        missing: names(&selected, &adapted),
        unselected: names(&adapted, &selected),
    })
}
