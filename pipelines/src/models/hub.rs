//! Fetches a model from the hub into the standard cache.
//!
//! The cache has the layout of `huggingface_hub`, so this crate and other programs find each other's models. Only the
//! needed files are fetched: `model_index.json`, configurations, tokenizers and one set of safetensors. The cache
//! records the commit of a revision only after all its files are there, so an interrupted fetch never looks complete.

mod client;
mod id;
mod plan;
mod settings;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use self::client::FetchEvent;
pub use self::id::HubId;
pub use self::plan::WeightPrecision;
pub use self::settings::{Connection, HubSettings, Token};

use self::client::Client;
use self::plan::Plan;
use crate::error::{Error, Result};
use crate::models::files::ModelFiles;

/// The files of the model `id`, named by its id; fetches the files that the cache lacks.
///
/// Online, the hub resolves the revision to a commit; if the hub cannot be reached, a complete copy in the cache is
/// used. Offline, only the cache is used. `on_event` gets the progress of each file.
///
/// # Errors
/// [`Error::TokenInTheClear`], [`Error::HubRefused`], [`Error::HubNotFound`], [`Error::HubFailed`],
/// [`Error::IncompleteModel`] and [`Error::PickleWeights`] for what the hub has, [`Error::NotCached`] offline.
pub fn fetch(
    id: &HubId,
    precision: WeightPrecision,
    settings: &HubSettings,
    on_event: &mut dyn FnMut(FetchEvent<'_>),
) -> Result<ModelFiles> {
    let folder = match settings.connection {
        Connection::Offline => cached(id, precision, settings)?,
        Connection::Online => match fetch_online(id, precision, settings, on_event) {
            Err(unreachable @ Error::HubFailed { .. }) => cached(id, precision, settings).map_err(|_| unreachable)?,
            other => other?,
        },
    };
    Ok(ModelFiles::folder(folder).with_name(id.to_string()))
}

fn fetch_online(
    id: &HubId,
    precision: WeightPrecision,
    settings: &HubSettings,
    on_event: &mut dyn FnMut(FetchEvent<'_>),
) -> Result<PathBuf> {
    let client = Client::new(settings)?;
    let listing = client.listing(id)?;
    let folder = client.snapshot(id, &listing.commit);
    if !listing.files.contains(plan::INDEX) {
        return Err(Error::IncompleteModel { id: id.to_string(), missing: vec![plan::INDEX.into()] });
    }
    client.ensure(id, &listing.commit, plan::INDEX, on_event)?;
    let plan = Plan::make(&read_index(&folder)?, &listing.files, precision);
    if let Some((component, found)) = plan.pickles.into_iter().next() {
        return Err(Error::PickleWeights { component: format!("{id}: {component}"), found });
    }
    if !plan.missing.is_empty() {
        return Err(Error::IncompleteModel { id: id.to_string(), missing: plan.missing });
    }
    for file in &plan.wanted {
        client.ensure(id, &listing.commit, file, on_event)?;
    }
    client.remember(id, &listing.commit)?;
    Ok(folder)
}

/// The snapshot folder of `id` if the cache holds all of it.
fn cached(id: &HubId, precision: WeightPrecision, settings: &HubSettings) -> Result<PathBuf> {
    let not_cached =
        |missing: Vec<String>| Error::NotCached { id: id.to_string(), cache: settings.cache.clone(), missing };
    let folder = client::cached_snapshot(id, settings)
        .filter(|folder| folder.join(plan::INDEX).is_file())
        .ok_or_else(|| not_cached(vec![plan::INDEX.into()]))?;
    let plan = Plan::make(&read_index(&folder)?, &files_in(&folder), precision);
    if plan.missing.is_empty() { Ok(folder) } else { Err(not_cached(plan.missing)) }
}

fn read_index(folder: &Path) -> Result<serde_json::Value> {
    ModelFiles::folder(folder).json(plan::INDEX)
}

/// The files in a model folder and its subfolders, with forward slashes.
fn files_in(folder: &Path) -> BTreeSet<String> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
    };
    let mut files = BTreeSet::new();
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            files.extend(names(&path).into_iter().map(|file| format!("{name}/{file}")));
        } else if path.is_file() {
            files.insert(name);
        }
    }
    files
}
