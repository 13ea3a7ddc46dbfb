//! Fetches a model from the hub into the standard cache.
//!
//! The cache has the layout of `huggingface_hub`, so this crate and other programs find each other's models. Only the
//! needed files are fetched: `model_index.json`, configurations, tokenizers and one set of safetensors. The cache
//! records the commit of a revision only after all its files are there, so an interrupted fetch never looks complete.
//!
//! A hub is not trusted: names, sizes, object ids and redirects are checked before they are used, and the bytes of a
//! file are kept only if they have the digest that the hub names.

mod address;
mod cache;
mod client;
mod error;
mod id;
mod listing;
mod oid;
mod plan;
mod settings;
mod transfer;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

pub use self::error::HubError;
pub use self::id::HubId;
pub use self::plan::WeightPrecision;
pub use self::settings::{Connection, HubSettings, Timeouts, Token};

use self::cache::ModelCache;
use self::client::Client;
use self::listing::{Listed, shown};
use self::plan::Plan;
use self::transfer::Fetch;
use crate::error::{Error, Result};
use crate::models::files::ModelFiles;

/// Progress of a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchEvent<'a> {
    /// Another process fetches the same model; told again and again until it ends.
    Waiting,
    /// The transfer of a file begins, at first or anew.
    Started {
        /// The file, relative to the model folder.
        file: &'a str,
        /// Its size in bytes.
        bytes: u64,
    },
    /// More bytes of the file are there: at first those that an interrupted fetch left.
    Received {
        /// The number of bytes since the last event.
        bytes: u64,
    },
    /// The file is complete and in the cache.
    Finished {
        /// The file, relative to the model folder.
        file: &'a str,
    },
}

/// Hears of the progress, and says whether to go on.
type Observer<'a> = &'a mut dyn FnMut(FetchEvent<'_>) -> ControlFlow<()>;

/// How closely files that are in the cache already are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheCheck {
    /// Their sizes, where the hub names them.
    Size,
    /// Their sizes and digests, which reads all of them.
    Digest,
}

/// The files of the model `id`, named by its id; fetches the files that the cache lacks, or has damaged as far as
/// `check` looks.
///
/// Online, the hub resolves the revision to a commit; if the hub cannot be reached, a complete copy in the cache is
/// used. Offline, only the cache is used. `on_event` gets the progress of each file; when it breaks, what has arrived
/// stays for the next fetch.
///
/// # Errors
/// [`Error::Hub`] for what the hub does or the cache lacks, [`Error::PickleWeights`], and [`Error::Cancelled`].
pub fn fetch(
    id: &HubId,
    precision: WeightPrecision,
    settings: &HubSettings,
    check: CacheCheck,
    on_event: &mut dyn FnMut(FetchEvent<'_>) -> ControlFlow<()>,
) -> Result<ModelFiles> {
    let folder = match settings.connection {
        Connection::Offline => cached(id, precision, settings, check)?,
        Connection::Online => match fetch_online(id, precision, settings, check, on_event) {
            Err(Error::Hub(error)) if error.is_unreachable() => {
                cached(id, precision, settings, check).map_err(|_| error)?
            }
            other => other?,
        },
    };
    Ok(ModelFiles::folder(folder).with_name(id.to_string()))
}

fn fetch_online(
    id: &HubId,
    precision: WeightPrecision,
    settings: &HubSettings,
    check: CacheCheck,
    on_event: Observer<'_>,
) -> Result<PathBuf> {
    let client = Client::new(settings)?;
    let listing = client.listing(id)?;
    let cache = ModelCache::new(id, &settings.cache);
    let folder = cache.snapshot(&listing.commit);
    let names: BTreeSet<String> = listing.files.keys().cloned().collect();
    if !names.contains(plan::INDEX) {
        return Err(HubError::Incomplete { id: id.to_string(), missing: vec![plan::INDEX.into()] }.into());
    }
    let (client, cache, listing) = (&client, &cache, &listing);
    let mut fetch = Fetch { client, cache, settings, id, listing, check, lock: None };
    fetch.ensure(plan::INDEX, on_event)?;
    let plan = Plan::make(&read_index(&folder)?, &names, precision);
    refuse(id, &plan)?;
    for file in &plan.wanted {
        fetch.ensure(file, on_event)?;
    }
    cache.remember(id.revision(), &listing.commit)?;
    if fetch.lock.is_some() {
        cache.remove_partials();
    }
    Ok(folder)
}

/// Fails if the files of `plan` are not to be had.
fn refuse(id: &HubId, plan: &Plan) -> Result<()> {
    if let Some(name) = plan.unsafe_names.first() {
        return Err(HubError::UnsafeName { id: id.to_string(), name: shown(name) }.into());
    }
    if let Some((component, found)) = plan.pickles.first() {
        return Err(Error::PickleWeights { component: format!("{id}: {component}"), found: found.clone() });
    }
    if !plan.missing.is_empty() {
        return Err(HubError::Incomplete { id: id.to_string(), missing: plan.missing.clone() }.into());
    }
    Ok(())
}

/// The snapshot folder of `id` if the cache holds all of it.
fn cached(id: &HubId, precision: WeightPrecision, settings: &HubSettings, check: CacheCheck) -> Result<PathBuf> {
    let not_cached =
        |missing: Vec<String>| HubError::NotCached { id: id.to_string(), cache: settings.cache.clone(), missing };
    let cache = ModelCache::new(id, &settings.cache);
    // The revision may be a commit itself.
    let commit = cache.commit_of(id.revision()).unwrap_or_else(|| id.revision().into());
    let folder = cache.snapshot(&commit);
    if !folder.join(plan::INDEX).is_file() {
        return Err(not_cached(vec![plan::INDEX.into()]).into());
    }
    let plan = Plan::make(&read_index(&folder)?, &files_in(&folder), precision);
    if !plan.missing.is_empty() {
        return Err(not_cached(plan.missing).into());
    }
    let is_damaged = |path: &PathBuf| !cache::is_good(path, &Listed::default(), check);
    match plan.wanted.iter().map(|file| folder.join(file)).find(is_damaged) {
        Some(path) => Err(HubError::DamagedCache { path }.into()),
        None => Ok(folder),
    }
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
