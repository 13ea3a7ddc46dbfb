//! Reading adapters, strictly.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;

use super::config::PeftConfig;
use super::contents::{Contents, Group, component_of};
use super::names::{NameIndex, Place};
use super::{Format, MatchReport, Metadata, hash};
use crate::adapter::Adapter;
use crate::error::{Error, Result, ShapeMismatch};
use crate::factors::LoraFactors;
use crate::family::BaseFamily;
use crate::module::{Component, ModuleInfo, ModuleKind};

/// An adapter as it was read.
#[derive(Debug, Clone)]
pub struct LoadedAdapter {
    /// Its factors, f32 on the CPU, in the shapes of the base's modules.
    pub adapter: Adapter,
    /// What found its place in the base.
    pub report: MatchReport,
    /// What the file says about itself.
    pub metadata: Metadata,
    /// How its tensors are named.
    pub format: Format,
    /// SHA-256 of the bytes after the header, which tools know the adapter by.
    pub model_hash: String,
}

/// What happens to keys that have no place in the base model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnmatchedKeys {
    /// The file is refused.
    #[default]
    Refuse,
    /// They are left out and listed in the report.
    LeaveOut,
}

/// Reads an adapter for the base with these modules; every key must have its place.
///
/// `path` is a safetensors file, or a folder with `adapter_model.safetensors` (PEFT) or
/// `pytorch_lora_weights.safetensors` (diffusers). Text encoder modules that `modules` does not
/// list are known by CLIP's fixed names. Where nothing tells alpha, it is the rank.
///
/// **Errors** a hostile or damaged file is [`Error::Numerics`] with the cause;
/// [`Error::UnsupportedKind`] for DoRA, LoHa and others; [`Error::NothingMatches`],
/// [`Error::UnmatchedKeys`], [`Error::WrongShapes`], [`Error::HalfPairs`],
/// [`Error::DuplicateModules`], [`Error::NotFinite`] name all offenders.
pub fn read(path: &Path, modules: &[ModuleInfo]) -> Result<LoadedAdapter> {
    read_with(path, modules, UnmatchedKeys::Refuse)
}

/// As [`read`], with a choice about keys without a place.
///
/// **Errors** as [`read`].
pub fn read_with(path: &Path, modules: &[ModuleInfo], unmatched: UnmatchedKeys) -> Result<LoadedAdapter> {
    let contents = Contents::open(path)?;
    contents.refuse_other_kinds()?;
    let configs = contents.configs()?;
    let places = Places::find(&contents, modules)?;
    if unmatched == UnmatchedKeys::Refuse && !places.report.unmatched.is_empty() {
        return Err(Error::UnmatchedKeys { path: contents.path.clone(), report: places.report });
    }
    let adapter = load(&contents, &places, &configs, BaseFamily::of_modules(modules))?;
    Ok(LoadedAdapter {
        adapter,
        report: places.report,
        metadata: Metadata::from_header(contents.file.metadata()),
        format: contents.format(),
        model_hash: hash::payload_hash(contents.file.bytes()),
    })
}

/// One module of the file with its place in the base.
struct Placed<'f> {
    path: String,
    /// Absent for a text encoder that the base does not list.
    kind: Option<ModuleKind>,
    down: &'f str,
    up: &'f str,
    alpha: Option<&'f str>,
}

/// Every module of the file that has its place, and the count of all.
struct Places<'f> {
    placed: Vec<Placed<'f>>,
    report: MatchReport,
}

impl<'f> Places<'f> {
    fn find(contents: &'f Contents, modules: &[ModuleInfo]) -> Result<Self> {
        let index = NameIndex::new(modules);
        let mut places = Self {
            placed: Vec::new(),
            report: MatchReport { unmatched: contents.strangers.clone(), ..MatchReport::default() },
        };
        let mut halves = Vec::new();
        for (stem, group) in &contents.groups {
            match (&group.down, &group.up) {
                (Some(down), Some(up)) => places.add(&index, stem, group, (down, up)),
                // An alpha without factors has nothing to scale.
                (None, None) => places.report.unmatched.extend(group.keys().cloned()),
                _ => halves.push(stem.clone()),
            }
        }
        if !halves.is_empty() {
            return Err(Error::HalfPairs { path: contents.path.clone(), modules: halves });
        }
        places.report.unmatched.sort();
        places.refuse_nothing(contents, modules)?;
        places.refuse_duplicates(contents)?;
        Ok(places)
    }

    fn add(&mut self, index: &NameIndex<'_>, stem: &str, group: &'f Group, pair: (&'f str, &'f str)) {
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
        self.placed.push(Placed { path, kind, down: pair.0, up: pair.1, alpha: group.alpha.as_deref() });
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

/// Loads all factors after comparing all shapes.
fn load(
    contents: &Contents,
    places: &Places<'_>,
    configs: &BTreeMap<Component, PeftConfig>,
    base_family: Option<BaseFamily>,
) -> Result<Adapter> {
    refuse_wrong_shapes(contents, places, base_family)?;
    let mut adapter = Adapter::new();
    let mut not_finite = Vec::new();
    for placed in &places.placed {
        let factors = load_module(contents, placed, configs, &mut not_finite)?;
        adapter.insert(placed.path.clone(), factors);
    }
    if not_finite.is_empty() {
        return Ok(adapter);
    }
    Err(Error::NotFinite { path: contents.path.clone(), tensors: not_finite })
}

fn refuse_wrong_shapes(contents: &Contents, places: &Places<'_>, base_family: Option<BaseFamily>) -> Result<()> {
    let mut offenders = Vec::new();
    for placed in &places.placed {
        let down = contents.shape(placed.down)?;
        let up = contents.shape(placed.up)?;
        offenders.extend(wrong_shape(placed, down, up));
    }
    if offenders.is_empty() {
        return Ok(());
    }
    Err(Error::WrongShapes { path: contents.path.clone(), offenders, file_family: contents.family(), base_family })
}

/// The first factor of a module that has not the shape its module needs, one-pixel kernels
/// counting as none.
fn wrong_shape(placed: &Placed<'_>, down: &[usize], up: &[usize]) -> Option<ShapeMismatch> {
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
        .map(|(factor, expected, found)| ShapeMismatch {
            module: placed.path.clone(),
            factor,
            expected,
            found: found.to_vec(),
        })
}

/// A shape without the sides of a one-pixel kernel.
fn flat(shape: &[usize]) -> &[usize] {
    match shape {
        [_, _, 1, 1] => &shape[..2],
        _ => shape,
    }
}

fn load_module(
    contents: &Contents,
    placed: &Placed<'_>,
    configs: &BTreeMap<Component, PeftConfig>,
    not_finite: &mut Vec<String>,
) -> Result<LoraFactors> {
    let down = contents.factor(placed.down, not_finite)?;
    let up = contents.factor(placed.up, not_finite)?;
    let rank = down.dims()[0];
    let (down_shape, up_shape) = match &placed.kind {
        Some(kind) => (kind.down_shape(rank), kind.up_shape(rank)),
        None => (flat(down.dims()).to_vec(), flat(up.dims()).to_vec()),
    };
    let reshaped =
        |tensor: Tensor, shape: Vec<usize>| tensor.reshape(shape).map_err(Error::tensor("reshaping factors"));
    let alpha = match placed.alpha {
        Some(name) => contents.alpha(name, not_finite)?,
        None => configured_alpha(configs, &placed.path, rank),
    };
    LoraFactors::new(reshaped(down, down_shape)?, reshaped(up, up_shape)?, alpha)
}

/// Alpha as a configuration tells it, or the rank.
fn configured_alpha(configs: &BTreeMap<Component, PeftConfig>, path: &str, rank: usize) -> f64 {
    Component::of_path(path)
        .and_then(|(component, inside)| configs.get(&component)?.alpha_of(inside, rank))
        .unwrap_or(rank as f64)
}
