//! Reads adapter files, strictly.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::config::PeftConfig;
use super::contents::{Contents, Group, UpdateKeys, component_of};
use super::names::{NameIndex, Place};
use super::{Format, Integrity, MatchReport, Metadata};
use super::stored::{AdapterFile, OpenedAdapter, StoredTensor, StoredUpdate};
use crate::adapter::Adapter;
use crate::error::{Error, Result, ShapeMismatch, SurplusRank};
use crate::factors::LARGEST_SURPLUS_RANK;
use crate::family::BaseFamily;
use crate::module::{Component, ModuleInfo, ModuleKind};

/// An adapter read from a file.
#[derive(Debug, Clone)]
pub struct LoadedAdapter {
    /// The updates, f32 on the CPU, in the shapes of the base's modules.
    pub adapter: Adapter,
    /// The modules that matched the base's, by component.
    pub report: MatchReport,
    /// The metadata of the file.
    pub metadata: Metadata,
    /// The format of the file.
    pub format: Format,
    /// SHA-256 of the bytes after the header, by which other tools identify the adapter.
    pub model_hash: String,
    /// Whether the file is as it was written; never [`Integrity::Damaged`], which is refused.
    pub integrity: Integrity,
}

/// What happens to keys that match no module of the base model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnmatchedKeys {
    /// The file is refused.
    #[default]
    Refuse,
    /// They are skipped and listed in the report.
    Skip,
}

/// Reads an adapter for the base with these modules; every key must match one of them.
///
/// `path` is a safetensors file, or a folder with `adapter_model.safetensors` (PEFT) or
/// `pytorch_lora_weights.safetensors` (diffusers). Text encoder modules that `modules` does not list are recognised by
/// CLIP's fixed names. Where neither the file nor a configuration has an alpha, it is the rank.
///
/// # Errors
/// [`Error::Numerics`] for a hostile or damaged file, with the cause; [`Error::Damaged`] for a file of ours whose checksum
/// does not hold; [`Error::UnsupportedKind`] for LoHa, LoKr and others. [`Error::NothingMatches`],
/// [`Error::UnmatchedKeys`], [`Error::WrongShapes`], [`Error::SurplusRanks`], [`Error::IncompleteModules`],
/// [`Error::DuplicateModules`] and [`Error::NotFinite`] name every offender.
pub fn read(path: &Path, modules: &[ModuleInfo]) -> Result<LoadedAdapter> {
    read_with(path, modules, UnmatchedKeys::Refuse)
}

/// As [`read`], with a choice about keys that match no module.
///
/// # Errors
/// As [`read`].
pub fn read_with(path: &Path, modules: &[ModuleInfo], unmatched: UnmatchedKeys) -> Result<LoadedAdapter> {
    let contents = Contents::open(path)?;
    let Checked { places, configs, model_hash, integrity } = checked(&contents, modules, unmatched)?;
    let adapter = load(&contents, &places, &configs)?;
    Ok(LoadedAdapter {
        adapter,
        report: places.report,
        metadata: Metadata::from_header(contents.file.metadata()),
        format: contents.format(),
        model_hash,
        integrity,
    })
}

/// As [`read`], without the values: all else is checked, and the file is read module by module later. Neither a handle nor
/// the header is kept, so that a process may have thousands of adapters open.
///
/// # Errors
/// As [`read`]; [`Error::NotFinite`] for alphas alone, since no other value is read.
pub fn open(path: &Path, modules: &[ModuleInfo]) -> Result<OpenedAdapter> {
    let contents = Contents::open(path)?;
    let Checked { places, configs, model_hash, integrity } = checked(&contents, modules, UnmatchedKeys::Refuse)?;
    let mut not_finite = Vec::new();
    let mut updates = BTreeMap::new();
    for placed in &places.placed {
        updates.insert(placed.path.clone(), stored(&contents, placed, &configs, &mut not_finite)?);
    }
    refuse_infinite(&contents, not_finite)?;
    Ok(OpenedAdapter {
        file: AdapterFile::new(&contents, updates)?,
        report: places.report,
        metadata: Metadata::from_header(contents.file.metadata()),
        format: contents.format(),
        model_hash,
        integrity,
    })
}

/// What is known of a file whose values have not been read.
struct Checked<'f> {
    places: Places<'f>,
    configs: BTreeMap<Component, PeftConfig>,
    model_hash: String,
    integrity: Integrity,
}

/// All checks but those of the values.
fn checked<'f>(contents: &'f Contents, modules: &[ModuleInfo], unmatched: UnmatchedKeys) -> Result<Checked<'f>> {
    let (model_hash, integrity) = contents.payload_hash()?;
    if integrity == Integrity::Damaged {
        return Err(Error::Damaged { path: contents.path.clone() });
    }
    contents.refuse_other_kinds()?;
    let configs = contents.configs()?;
    refuse_missing_magnitudes(contents, &configs)?;
    let places = Places::find(contents, modules)?;
    if unmatched == UnmatchedKeys::Refuse && !places.report.unmatched.is_empty() {
        return Err(Error::UnmatchedKeys { path: contents.path.clone(), report: places.report });
    }
    refuse_wrong_shapes(contents, &places, BaseFamily::of_modules(modules))?;
    refuse_surplus_ranks(contents, &places)?;
    Ok(Checked { places, configs, model_hash, integrity })
}

/// Refuses a file that lacks magnitudes although its configuration has `use_dora`.
fn refuse_missing_magnitudes(contents: &Contents, configs: &BTreeMap<Component, PeftConfig>) -> Result<()> {
    let decomposed = |stem: &str| configs.get(&component_of(stem)).is_some_and(PeftConfig::is_decomposed);
    let missing = contents.groups.iter().filter_map(|(stem, group)| {
        let update = group.update().ok().flatten()?;
        (update.magnitude.is_none() && decomposed(stem)).then(|| group.without("magnitude"))
    });
    contents.refuse_incomplete(missing.collect())
}

/// One module of the file, matched to a module of the base.
struct Placed<'f> {
    path: String,
    /// `None` for a module of a text encoder that the base does not list.
    kind: Option<ModuleKind>,
    keys: UpdateKeys<'f>,
}

/// The matched modules of the file, and the counts of all.
struct Places<'f> {
    placed: Vec<Placed<'f>>,
    report: MatchReport,
}

impl<'f> Places<'f> {
    fn find(contents: &'f Contents, modules: &[ModuleInfo]) -> Result<Self> {
        let index = NameIndex::new(modules);
        let mut places = Self {
            placed: Vec::new(),
            report: MatchReport { unmatched: contents.unrecognised.clone(), ..MatchReport::default() },
        };
        let mut incomplete = Vec::new();
        for (stem, group) in &contents.groups {
            match group.update() {
                Ok(Some(keys)) => places.add(&index, stem, group, keys),
                Ok(None) => places.report.unmatched.extend(group.keys().cloned()),
                Err(module) => incomplete.push(module),
            }
        }
        contents.refuse_incomplete(incomplete)?;
        places.report.unmatched.sort();
        places.refuse_nothing(contents, modules)?;
        places.refuse_duplicates(contents)?;
        Ok(places)
    }

    fn add(&mut self, index: &NameIndex<'_>, stem: &str, group: &'f Group, keys: UpdateKeys<'f>) {
        let component = component_of(stem);
        let counts = self.report.components.entry(component).or_default();
        counts.total += 1;
        counts.compared = index.lists(component);
        let (path, kind) = match index.find(stem) {
            Place::Module(module) => (module.path.clone(), Some(module.kind)),
            Place::Unlisted(path) => (path, None),
            Place::Nowhere => {
                self.report.unmatched.extend(group.keys().cloned());
                return;
            }
        };
        counts.matched += 1;
        self.placed.push(Placed { path, kind, keys });
    }

    fn refuse_nothing(&self, contents: &Contents, modules: &[ModuleInfo]) -> Result<()> {
        if !self.placed.is_empty() {
            return Ok(());
        }
        Err(Error::NothingMatches {
            path: contents.path.clone(),
            total: contents.groups.len(),
            first: contents.groups.keys().next().cloned().unwrap_or_default(),
            file_family: contents.family(),
            base_family: BaseFamily::of_modules(modules),
        })
    }

    fn refuse_duplicates(&self, contents: &Contents) -> Result<()> {
        let mut seen = BTreeSet::new();
        let twice = self.placed.iter().filter(|placed| !seen.insert(&placed.path));
        let modules: Vec<String> = twice.map(|placed| placed.path.clone()).collect();
        if modules.is_empty() {
            return Ok(());
        }
        Err(Error::DuplicateModules { path: contents.path.clone(), modules })
    }
}

/// Loads all updates.
fn load(contents: &Contents, places: &Places<'_>, configs: &BTreeMap<Component, PeftConfig>) -> Result<Adapter> {
    let mut adapter = Adapter::new();
    let mut not_finite = Vec::new();
    for placed in &places.placed {
        let stored = stored(contents, placed, configs, &mut not_finite)?;
        let update = stored.read(|tensor| contents.tensor(&tensor.name, &mut not_finite))?;
        adapter.insert(placed.path.clone(), update);
    }
    refuse_infinite(contents, not_finite)?;
    Ok(adapter)
}

fn refuse_infinite(contents: &Contents, tensors: Vec<String>) -> Result<()> {
    if tensors.is_empty() { Ok(()) } else { Err(Error::NotFinite { path: contents.path.clone(), tensors }) }
}

fn refuse_wrong_shapes(contents: &Contents, places: &Places<'_>, base_family: Option<BaseFamily>) -> Result<()> {
    let mut offenders = Vec::new();
    for placed in &places.placed {
        let UpdateKeys { down, up, magnitude, .. } = placed.keys;
        let (down, up) = (contents.shape(down)?, contents.shape(up)?);
        let magnitude = magnitude.map(|name| contents.shape(name)).transpose()?;
        offenders.extend(wrong_factor(placed, down, up).or_else(|| wrong_magnitude(placed, up, magnitude?)));
    }
    if offenders.is_empty() {
        return Ok(());
    }
    Err(Error::WrongShapes { path: contents.path.clone(), offenders, file_family: contents.family(), base_family })
}

/// Refuses ranks that no module of these sizes needs: activations of that width would take memory and time for nothing.
fn refuse_surplus_ranks(contents: &Contents, places: &Places<'_>) -> Result<()> {
    let mut modules = Vec::new();
    for placed in &places.placed {
        let (down, up) = (contents.shape(placed.keys.down)?, contents.shape(placed.keys.up)?);
        let most = up[0].max(down[1..].iter().product()).max(LARGEST_SURPLUS_RANK);
        if down[0] > most {
            modules.push(SurplusRank { module: placed.path.clone(), rank: down[0], most });
        }
    }
    if modules.is_empty() { Ok(()) } else { Err(Error::SurplusRanks { path: contents.path.clone(), modules }) }
}

/// The first factor of a module whose shape does not fit the module. One-pixel kernels may be left out of a shape.
fn wrong_factor(placed: &Placed<'_>, down: &[usize], up: &[usize]) -> Option<ShapeMismatch> {
    let rank = down.first().copied().unwrap_or(0);
    let expected = match &placed.kind {
        Some(kind) => [kind.down_shape(rank), kind.up_shape(rank)],
        None => {
            let inputs = down.get(1).copied().unwrap_or(0);
            let outputs = up.first().copied().unwrap_or(0);
            [vec![rank, inputs], vec![outputs, rank]]
        }
    };
    let [down_shape, up_shape] = expected;
    [("down", down_shape, down), ("up", up_shape, up)]
        .into_iter()
        .find(|(_, expected, found)| rank == 0 || flat(expected) != flat(found))
        .map(|(factor, expected, found)| mismatch(placed, factor, expected, found))
}

/// Magnitudes that do not fit `up`. Accepted are `[out]`, kohya's `[out, 1]` and `[out, 1, 1, 1]`, and PEFT's
/// `[1, out, 1, 1]` of convolutions.
fn wrong_magnitude(placed: &Placed<'_>, up: &[usize], magnitude: &[usize]) -> Option<ShapeMismatch> {
    let out = up[0];
    let known: [&[usize]; 4] = [&[out], &[out, 1], &[out, 1, 1, 1], &[1, out, 1, 1]];
    (!known.contains(&magnitude)).then(|| mismatch(placed, "magnitude", vec![out], magnitude))
}

fn mismatch(placed: &Placed<'_>, factor: &'static str, expected: Vec<usize>, found: &[usize]) -> ShapeMismatch {
    ShapeMismatch { module: placed.path.clone(), factor, expected, found: found.to_vec() }
}

/// A shape without the sides of a one-pixel kernel.
fn flat(shape: &[usize]) -> &[usize] {
    match shape {
        [_, _, 1, 1] => &shape[..2],
        _ => shape,
    }
}

/// Where a module's update is in the file. An alpha that is not finite is added to `not_finite`.
fn stored(
    contents: &Contents,
    placed: &Placed<'_>,
    configs: &BTreeMap<Component, PeftConfig>,
    not_finite: &mut Vec<String>,
) -> Result<StoredUpdate> {
    let keys = &placed.keys;
    let (down, up) = (contents.shape(keys.down)?, contents.shape(keys.up)?);
    let rank = down[0];
    let (down_shape, up_shape) = match &placed.kind {
        Some(kind) => (kind.down_shape(rank), kind.up_shape(rank)),
        None => (flat(down).to_vec(), flat(up).to_vec()),
    };
    let alpha = match keys.alpha {
        Some(name) => contents.alpha(name, not_finite)?,
        None => configured_alpha(configs, &placed.path, rank),
    };
    let out = vec![up_shape[0]];
    let tensor = |name: &str, shape: Vec<usize>| -> Result<StoredTensor> {
        Ok(StoredTensor { name: name.to_owned(), place: contents.place(name)?, shape })
    };
    Ok(StoredUpdate {
        down: tensor(keys.down, down_shape)?,
        up: tensor(keys.up, up_shape)?,
        magnitude: keys.magnitude.map(|name| tensor(name, out)).transpose()?,
        alpha,
    })
}

/// The alpha in the configuration of the module's component, or the rank.
fn configured_alpha(configs: &BTreeMap<Component, PeftConfig>, path: &str, rank: usize) -> f64 {
    Component::of_path(path)
        .and_then(|(component, inside)| configs.get(&component)?.alpha_of(inside, rank))
        .unwrap_or(rank as f64)
}
