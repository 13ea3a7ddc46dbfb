//! An adapter file's tensors, sorted by the modules they belong to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use catelier_numerics::bounded;
use catelier_numerics::finite::is_finite;
use catelier_numerics::tensor_file::{TensorFile, TensorPlace};

use super::config::{self, PeftConfig};
use super::key::{Key, PEFT_PREFIX, Role, Spelling, spelling};
use super::write::{PEFT_CONFIG, PEFT_FILE};
use super::{Format, Integrity, Metadata, hash};
use crate::error::{Error, IncompleteModule, Result};
use crate::family::{BaseFamily, takes_context};
use crate::kind::AdapterKind;
use crate::module::Component;

/// Largest `adapter_config.json`; one that lists every module of a large base is below 1 MiB.
const LARGEST_CONFIG: u64 = 4 << 20;

/// The names of one module's tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<String>,
    magnitude: Option<String>,
    foreign: Vec<(AdapterKind, String)>,
}

/// The names of the tensors of an update that can be applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UpdateKeys<'f> {
    pub(crate) down: &'f str,
    pub(crate) up: &'f str,
    pub(crate) alpha: Option<&'f str>,
    /// `Some` for a DoRA.
    pub(crate) magnitude: Option<&'f str>,
}

impl Group {
    /// Every tensor name of the module.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        let foreign = self.foreign.iter().map(|(_, name)| name);
        [&self.down, &self.up, &self.alpha, &self.magnitude].into_iter().flatten().chain(foreign)
    }

    /// The names of the tensors of an update that can be applied, without its alpha.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &String> {
        [&self.down, &self.up, &self.magnitude].into_iter().flatten()
    }

    /// The tensors of the module's update; `None` if the module has nothing but an alpha.
    pub(crate) fn update(&self) -> std::result::Result<Option<UpdateKeys<'_>>, IncompleteModule> {
        match (&self.down, &self.up) {
            (Some(down), Some(up)) => {
                let (alpha, magnitude) = (self.alpha.as_deref(), self.magnitude.as_deref());
                Ok(Some(UpdateKeys { down, up, alpha, magnitude }))
            }
            (None, None) if self.magnitude.is_none() => Ok(None),
            (None, _) => Err(self.without("down")),
            (_, None) => Err(self.without("up")),
        }
    }

    /// The report of a module that lacks the tensor `missing`.
    pub(crate) fn without(&self, missing: &'static str) -> IncompleteModule {
        IncompleteModule { keys: self.keys().cloned().collect(), missing }
    }

    /// The kind of its update; `None` if the module has nothing but an alpha.
    pub(crate) fn kind(&self) -> Option<AdapterKind> {
        match (self.foreign.first(), &self.magnitude, &self.down) {
            (Some((kind, _)), _, _) => Some(*kind),
            (None, Some(_), _) => Some(AdapterKind::Dora),
            (None, None, down) => down.as_ref().map(|_| AdapterKind::Lora),
        }
    }
}

/// A file's tensors sorted by module.
pub(crate) struct Contents {
    pub(crate) path: PathBuf,
    pub(crate) file: TensorFile,
    pub(crate) groups: BTreeMap<String, Group>,
    /// Keys that are not the name of an adapter's tensor.
    pub(crate) unrecognised: Vec<String>,
    formats: BTreeSet<Format>,
}

impl Contents {
    /// Opens a file, or the adapter file in a folder, and sorts its tensors by module.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let path = file_in(path)?;
        let file = TensorFile::open(&path).map_err(Error::numerics(format!("reading `{}`", path.display())))?;
        let mut contents =
            Self { groups: BTreeMap::new(), unrecognised: Vec::new(), formats: BTreeSet::new(), path, file };
        let names: Vec<String> = contents.file.names().map(str::to_owned).collect();
        for name in names {
            contents.sort_in(name);
        }
        if contents.groups.is_empty() {
            return Err(Error::NotAnAdapter {
                tensors: contents.unrecognised.len(),
                names: contents.unrecognised.into_iter().take(3).collect(),
                path: contents.path,
            });
        }
        Ok(contents)
    }

    fn sort_in(&mut self, name: String) {
        let Some(key) = Key::parse(&name) else {
            self.unrecognised.push(name);
            return;
        };
        self.formats.extend(key.format);
        let group = self.groups.entry(key.stem).or_default();
        let slot = match key.role {
            Role::Down => &mut group.down,
            Role::Up => &mut group.up,
            Role::Alpha => &mut group.alpha,
            Role::Magnitude => &mut group.magnitude,
            Role::Foreign(kind) => {
                group.foreign.push((kind, name));
                return;
            }
        };
        match slot {
            None => *slot = Some(name),
            // Two spellings of one tensor: nothing says which is right, so the second counts as unrecognised.
            Some(_) => self.unrecognised.push(name),
        }
    }

    /// The spelling of the factors; the older one where diffusers mixes two.
    pub(crate) fn format(&self) -> Format {
        let format = self.formats.first().copied().unwrap_or_default();
        // diffusers has no older spelling of magnitudes, and names the factors beside them as PEFT does.
        let of_diffusers =
            |(stem, group): (&String, &Group)| group.magnitude.is_some() && Component::of_path(stem).is_some();
        if format == Format::Peft && self.groups.iter().any(of_diffusers) { Format::Diffusers } else { format }
    }

    /// Tensors of kinds that cannot be applied, by kind.
    pub(crate) fn foreign(&self) -> BTreeMap<AdapterKind, Vec<String>> {
        let mut kinds = BTreeMap::<_, Vec<String>>::new();
        for (kind, name) in self.groups.values().flat_map(|group| &group.foreign) {
            kinds.entry(*kind).or_default().push(name.clone());
        }
        kinds
    }

    /// Refuses kinds that cannot be applied.
    pub(crate) fn refuse_other_kinds(&self) -> Result<()> {
        match self.foreign().pop_first() {
            Some((kind, keys)) => Err(Error::UnsupportedKind { path: self.path.clone(), kind, keys }),
            None => Ok(()),
        }
    }

    /// Refuses a file with incomplete modules.
    pub(crate) fn refuse_incomplete(&self, modules: Vec<IncompleteModule>) -> Result<()> {
        if modules.is_empty() { Ok(()) } else { Err(Error::IncompleteModules { path: self.path.clone(), modules }) }
    }

    /// The configurations of the file by component; an error for a kind that cannot be applied.
    pub(crate) fn configs(&self) -> Result<BTreeMap<Component, PeftConfig>> {
        let configs = self.read_configs()?;
        match configs.values().find_map(PeftConfig::other_kind) {
            Some(kind) => Err(Error::UnsupportedKind {
                path: self.path.clone(),
                kind,
                keys: self.groups.values().flat_map(Group::keys).cloned().collect(),
            }),
            None => Ok(configs),
        }
    }

    /// The configurations of the file by component, of any kind: from `adapter_config.json` or the header.
    pub(crate) fn read_configs(&self) -> Result<BTreeMap<Component, PeftConfig>> {
        let beside = self.path.with_file_name(PEFT_CONFIG);
        if self.is_peft_file() && beside.is_file() {
            let text = bounded::read(&beside, LARGEST_CONFIG).map_err(Error::io(&beside))?;
            let config = PeftConfig::from_json(&beside.display().to_string(), &text)?;
            let own = self.groups.keys().map(|stem| component_of(stem));
            return Ok(own.map(|component| (component, config.clone())).collect());
        }
        match self.file.metadata().get(config::HEADER_ENTRY) {
            Some(text) => PeftConfig::from_header(text),
            None => Ok(BTreeMap::new()),
        }
    }

    /// Whether the file is in PEFT's format, so that an `adapter_config.json` beside it belongs to it.
    fn is_peft_file(&self) -> bool {
        self.path.file_name().is_some_and(|name| name == PEFT_FILE)
            || self.groups.keys().any(|stem| stem.starts_with(PEFT_PREFIX))
    }

    /// The base family that the file seems made for, judged by the width of its text context, else by its names, else
    /// by its metadata.
    pub(crate) fn family(&self) -> Option<BaseFamily> {
        let width = self.groups.iter().find_map(|(stem, group)| {
            let down = group.down.as_ref().filter(|_| takes_context(stem))?;
            BaseFamily::of_context_width(*self.file.shape(down).ok()?.get(1)?)
        });
        let sdxl_names = ["lora_unet_input_blocks", "lora_te2_", "text_encoder_2."];
        let named = self.groups.keys().any(|stem| sdxl_names.iter().any(|n| stem.starts_with(n)));
        width.or(named.then_some(BaseFamily::Sdxl)).or_else(|| Metadata::from_header(self.file.metadata()).base.family)
    }
}

/// The component of a module's name in a file.
pub(crate) fn component_of(stem: &str) -> Component {
    match spelling(stem) {
        Spelling::Underscored(component, _) | Spelling::Dotted(component, _) => component,
    }
}

/// The tensor file at `path`, which may be the folder that holds it.
fn file_in(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    [PEFT_FILE, "pytorch_lora_weights.safetensors"]
        .iter()
        .map(|name| path.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::EmptyFolder { folder: path.to_owned() })
}

impl Contents {
    /// SHA-256 of the bytes after the header, and whether the file is as it was written.
    pub(crate) fn payload_hash(&self) -> Result<(String, Integrity)> {
        hash::payload_hash(&self.file).map_err(Error::numerics(format!("reading `{}`", self.path.display())))
    }

    /// Shape of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Result<&[usize]> {
        self.file.shape(name).map_err(self.failed(name))
    }

    /// The place of a tensor of an update, whose elements are floating-point numbers.
    pub(crate) fn place(&self, name: &str) -> Result<TensorPlace> {
        let dtype = self.file.dtype(name).map_err(self.failed(name))?;
        if !matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
            return Err(self.unexpected(name, "floating point", format!("{dtype:?}")));
        }
        self.file.place(name).map_err(self.failed(name))
    }

    /// A tensor of an update, converted to f32. If a value is not finite, the tensor's name is added to `not_finite`.
    pub(crate) fn tensor(&self, name: &str, not_finite: &mut Vec<String>) -> Result<Tensor> {
        let tensor = self.file.tensor_f32(name).map_err(self.failed(name))?;
        if !is_finite(&tensor).map_err(Error::tensor("checking factors"))? {
            not_finite.push(name.to_owned());
        }
        Ok(tensor)
    }

    /// An alpha. If it is not finite, its name is added to `not_finite` and the result is 1.
    pub(crate) fn alpha(&self, name: &str, not_finite: &mut Vec<String>) -> Result<f64> {
        let shape = self.shape(name)?;
        if shape.iter().product::<usize>() != 1 {
            return Err(self.unexpected(name, "a single number", format!("shape {shape:?}")));
        }
        let alpha = self
            .file
            .tensor(name, &Device::Cpu)
            .map_err(self.failed(name))?
            .to_dtype(DType::F64)
            .and_then(|tensor| tensor.flatten_all()?.get(0)?.to_scalar::<f64>())
            .map_err(Error::tensor("reading alpha"))?;
        if alpha.is_finite() {
            return Ok(alpha);
        }
        not_finite.push(name.to_owned());
        Ok(1.0)
    }

    fn unexpected(&self, tensor: &str, expected: &'static str, found: String) -> Error {
        Error::UnexpectedTensor { path: self.path.clone(), tensor: tensor.to_owned(), expected, found }
    }

    fn failed(&self, tensor: &str) -> impl FnOnce(catelier_numerics::Error) -> Error {
        Error::numerics(format!("reading `{tensor}` of `{}`", self.path.display()))
    }
}
