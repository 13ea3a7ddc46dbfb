//! The contents of an adapter file, found without a base model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::PeftConfig;
use super::contents::{Contents, Group, UpdateKeys, component_of};
use super::key::{Spelling, spelling};
use super::{Format, Integrity};
use crate::error::{Error, Result};
use crate::factors::LoraFactors;
use crate::family::BaseFamily;
use crate::kind::AdapterKind;
use crate::module::Component;

/// The contents of an adapter file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// Name of the file, without its folder.
    pub file: String,
    /// Size of the file.
    pub bytes: u64,
    /// The format of its tensor names.
    pub format: Format,
    /// The kinds of adapter in it, with the number of modules of each.
    pub kinds: BTreeMap<AdapterKind, usize>,
    /// The ranks in it, with the number of modules of each.
    pub ranks: BTreeMap<usize, usize>,
    /// The alphas in it as text, with the number of modules of each.
    pub alphas: BTreeMap<String, usize>,
    /// Number of modules of each component.
    pub components: BTreeMap<Component, usize>,
    /// The base family it seems made for.
    pub family: Option<BaseFamily>,
    /// Dtypes of the updates.
    pub dtypes: BTreeSet<String>,
    /// Number of elements of all updates.
    pub element_count: usize,
    /// SHA-256 of the bytes after the header, by which other tools identify the adapter.
    pub model_hash: String,
    /// Irregularities: incomplete modules, unrecognised keys, values that are not finite, a hash in the header that
    /// does not match.
    pub remarks: Vec<String>,
    /// Every module with an update that can be applied, in the order of the names.
    pub modules: Vec<InspectedModule>,
    /// The entries of the header, unchanged.
    pub metadata: BTreeMap<String, String>,
}

/// One module of an adapter file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InspectedModule {
    /// The module's name in the file.
    pub name: String,
    /// The component it belongs to.
    pub component: Component,
    /// Its rank.
    pub rank: usize,
    /// Its alpha; the rank if the file has no alpha.
    pub alpha: f64,
    /// Shape of `down`.
    pub down: Vec<usize>,
    /// Shape of `up`.
    pub up: Vec<usize>,
    /// Shape of the magnitudes; none for a plain LoRA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub magnitude: Option<Vec<usize>>,
    /// Frobenius norm of the low-rank part of the update; `None` if the file has a value that is not finite.
    pub norm: Option<f64>,
}

/// Lists the contents of an adapter file of any kind; no base model is needed.
///
/// # Errors
/// [`Error::NotAnAdapter`], [`Error::EmptyFolder`], and [`Error::Numerics`] for a file that is damaged or not in
/// safetensors format.
pub fn inspect(path: &Path) -> Result<Inspection> {
    let contents = Contents::open(path)?;
    let mut remarks = Vec::new();
    let modules = modules(&contents, &mut remarks)?;
    let (model_hash, integrity) = contents.payload_hash()?;
    remark_on_rest(&contents, integrity, &mut remarks);
    Ok(Inspection {
        file: name_of(&contents.path),
        bytes: contents.file.byte_count(),
        format: contents.format(),
        kinds: kinds(&contents),
        ranks: counted(modules.iter().map(|module| module.rank)),
        alphas: counted(modules.iter().map(|module| module.alpha.to_string())),
        components: counted(contents.groups.keys().map(|stem| component_of(stem))),
        family: contents.family(),
        dtypes: dtypes(&contents)?,
        element_count: modules.iter().map(InspectedModule::element_count).sum(),
        model_hash,
        remarks,
        modules,
        metadata: contents.file.metadata().clone(),
    })
}

impl InspectedModule {
    fn element_count(&self) -> usize {
        [&self.down, &self.up].into_iter().chain(&self.magnitude).map(|shape| shape.iter().product::<usize>()).sum()
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn counted<T: Ord>(values: impl Iterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts
}

fn kinds(contents: &Contents) -> BTreeMap<AdapterKind, usize> {
    counted(contents.groups.values().filter_map(Group::kind))
}

fn dtypes(contents: &Contents) -> Result<BTreeSet<String>> {
    let dtype_of = |name: &String| {
        let dtype = contents.file.dtype(name).map_err(Error::numerics(format!("reading `{name}`")))?;
        Ok(dtype.as_str().to_owned())
    };
    contents.groups.values().flat_map(Group::tensors).map(dtype_of).collect()
}

fn modules(contents: &Contents, remarks: &mut Vec<String>) -> Result<Vec<InspectedModule>> {
    let configs = contents.read_configs().unwrap_or_else(|error| {
        remarks.push(error.to_string());
        BTreeMap::new()
    });
    let mut modules = Vec::new();
    for (stem, group) in &contents.groups {
        match group.update() {
            Ok(Some(keys)) => modules.push(module(contents, &configs, stem, keys, remarks)?),
            Ok(None) => {}
            Err(incomplete) => remarks.push(format!("`{stem}` is incomplete: {incomplete}")),
        }
    }
    Ok(modules)
}

fn module(
    contents: &Contents,
    configs: &BTreeMap<Component, PeftConfig>,
    stem: &str,
    keys: UpdateKeys<'_>,
    remarks: &mut Vec<String>,
) -> Result<InspectedModule> {
    let component = component_of(stem);
    let rank = contents.shape(keys.down)?.first().copied().unwrap_or(0);
    let mut not_finite = Vec::new();
    let alpha = match keys.alpha {
        Some(name) => contents.alpha(name, &mut not_finite)?,
        None => {
            configs.get(&component).and_then(|config| config.alpha_of(path_inside(stem), rank)).unwrap_or(rank as f64)
        }
    };
    let norm = norm(contents, keys, alpha, &mut not_finite)?;
    remarks.extend(not_finite.iter().map(|name| format!("`{name}` is not finite")));
    let shape = |name: &str| Ok::<_, Error>(contents.shape(name)?.to_vec());
    Ok(InspectedModule {
        name: stem.to_owned(),
        component,
        rank,
        alpha,
        down: shape(keys.down)?,
        up: shape(keys.up)?,
        magnitude: keys.magnitude.map(shape).transpose()?,
        norm,
    })
}

/// The part of a stem after the component.
fn path_inside(stem: &str) -> &str {
    match spelling(stem) {
        Spelling::Dotted(_, inside) | Spelling::Underscored(_, inside) => inside,
    }
}

/// Norm of a module's low-rank update; `None` if its factors do not fit or a value of its tensors is not finite.
fn norm(contents: &Contents, keys: UpdateKeys<'_>, alpha: f64, not_finite: &mut Vec<String>) -> Result<Option<f64>> {
    let down = contents.tensor(keys.down, not_finite)?;
    let up = contents.tensor(keys.up, not_finite)?;
    if let Some(magnitude) = keys.magnitude {
        contents.tensor(magnitude, not_finite)?;
    }
    match LoraFactors::new(down, up, alpha) {
        Ok(factors) if not_finite.is_empty() => Ok(Some(factors.delta_norm()?)),
        _ => Ok(None),
    }
}

fn remark_on_rest(contents: &Contents, integrity: Integrity, remarks: &mut Vec<String>) {
    if let Some(first) = contents.unrecognised.first() {
        let count = contents.unrecognised.len();
        remarks.push(format!("{count} tensors are none of an adapter's, first `{first}`"));
    }
    for (kind, keys) in contents.foreign() {
        remarks.push(format!("{} tensors of a {kind}, which cannot be applied", keys.len()));
    }
    remarks.extend(integrity.remark().map(str::to_owned));
}
