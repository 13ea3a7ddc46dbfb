//! A base model's files: a diffusers folder on disk, or the same files embedded in the binary; or its configuration alone,
//! with weights made up.

mod random;
mod stored;
mod weights;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use random::RandomTensors;
pub use stored::StoredTensor;
use stored::WeightsFile;
pub use weights::{TensorOffence, UnsupportedSetting, Weights};

/// One file of a base model compiled into the binary.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedFile {
    /// The path inside the model folder, with forward slashes: `unet/config.json`.
    pub path: &'static str,
    /// The file's content.
    pub bytes: &'static [u8],
}

/// Where a base model's files are, and what the model is called.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    name: String,
    location: Location,
}

#[derive(Debug, Clone)]
enum Location {
    Folder(PathBuf),
    Embedded(&'static [EmbeddedFile]),
    /// All files but the weights, which follow from the seed.
    Random(&'static [EmbeddedFile], u64),
}

/// The names a component's weights may have, best first: full precision before half.
const WEIGHT_STEMS: [&str; 6] = [
    "diffusion_pytorch_model",
    "model",
    "diffusion_pytorch_model.fp16",
    "model.fp16",
    "diffusion_pytorch_model.bf16",
    "model.bf16",
];

/// Endings of files that Python unpickles, running whatever they say.
const PICKLE_ENDINGS: [&str; 5] = ["bin", "ckpt", "pt", "pth", "pkl"];

impl ModelFiles {
    /// A folder in the diffusers layout, called after its last path component.
    ///
    /// Nothing is read yet: a folder that is not there is reported by the first read.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        Self { name, location: Location::Folder(path) }
    }

    /// Files compiled into the binary, called `embedded`.
    pub fn embedded(files: &'static [EmbeddedFile]) -> Self {
        Self { name: "embedded".into(), location: Location::Embedded(files) }
    }

    /// Configurations compiled into the binary, and weights that are made up from `seed` as they are asked for: the full
    /// shape and cost of a model in memory, and none of its knowledge.
    pub fn random(name: impl Into<String>, files: &'static [EmbeddedFile], seed: u64) -> Self {
        Self { name: name.into(), location: Location::Random(files, seed) }
    }

    /// The same files under another name, such as the hub id they came from.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What the model is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder on disk; `None` for files in the binary.
    pub fn path(&self) -> Option<&Path> {
        match &self.location {
            Location::Folder(folder) => Some(folder),
            Location::Embedded(_) | Location::Random(..) => None,
        }
    }

    /// What the weights are made up from; `None` where files hold them.
    pub fn random_seed(&self) -> Option<u64> {
        match &self.location {
            Location::Random(_, seed) => Some(*seed),
            Location::Folder(_) | Location::Embedded(_) => None,
        }
    }

    /// Whether the file `path` (relative, forward slashes) is there.
    pub fn exists(&self, path: &str) -> bool {
        match &self.location {
            Location::Folder(folder) => folder.join(path).is_file(),
            Location::Embedded(files) | Location::Random(files, _) => find(files, path).is_some(),
        }
    }

    /// The content of the file `path` (relative, forward slashes).
    ///
    /// # Errors
    /// [`Error::MissingFile`] or [`Error::ReadFile`].
    pub fn read(&self, path: &str) -> Result<Cow<'static, [u8]>> {
        let missing = || Error::MissingFile { base: self.name.clone(), path: path.into() };
        match &self.location {
            Location::Embedded(files) | Location::Random(files, _) => {
                find(files, path).map(Cow::Borrowed).ok_or_else(missing)
            }
            Location::Folder(folder) => {
                refuse_single_file(folder)?;
                let file = folder.join(path);
                std::fs::read(&file).map(Cow::Owned).map_err(|source| match source.kind() {
                    std::io::ErrorKind::NotFound => missing(),
                    _ => Error::ReadFile { path: file, source },
                })
            }
        }
    }

    /// The JSON file `path` as a `T`.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and [`Error::InvalidConfig`].
    pub fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        serde_json::from_slice(&self.read(path)?).map_err(|source| Error::InvalidConfig { path: path.into(), source })
    }

    /// The weights of `component` (`unet`, `vae`, `text_encoder`, ...), memory-mapped from a folder; each tensor
    /// is converted to `dtype` on `device` when it is taken.
    ///
    /// Looks for `diffusion_pytorch_model` and `model`, whole or sharded (`*.safetensors.index.json`), in full
    /// precision first and then as `fp16` or `bf16` variants.
    ///
    /// # Errors
    /// [`Error::MissingWeights`], [`Error::PickleWeights`], [`Error::MissingShards`], [`Error::UnreadableWeights`].
    pub fn weights(&self, component: &str, dtype: DType, device: &Device) -> Result<Weights> {
        match &self.location {
            Location::Folder(folder) => {
                let files: Vec<PathBuf> = self.weight_paths(component)?.iter().map(|path| folder.join(path)).collect();
                Weights::mapped(component, &files, dtype, device)
            }
            Location::Embedded(files) => {
                let bytes = self.weight_paths(component)?.iter().filter_map(|path| find(files, path)).collect();
                Weights::embedded(component, bytes, dtype, device)
            }
            Location::Random(_, seed) => Ok(Weights::random(self.random_tensors(component, *seed)?, dtype, device)),
        }
    }

    /// The tensors of `component` in order of name, of which only the files' headers are read; random weights have none.
    ///
    /// # Errors
    /// Those of [`weights`](Self::weights), and [`Error::ReadFile`].
    pub fn stored_tensors(&self, component: &str) -> Result<Vec<StoredTensor>> {
        let open = |path: &String| match &self.location {
            Location::Folder(folder) => WeightsFile::open(&folder.join(path))?.tensors(),
            Location::Embedded(files) | Location::Random(files, _) => {
                WeightsFile::embedded(component, find(files, path).unwrap_or_default()).tensors()
            }
        };
        let paths = if self.random_seed().is_some() { Vec::new() } else { self.weight_paths(component)? };
        let files = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        let mut tensors: Vec<StoredTensor> = files.into_iter().flatten().collect();
        tensors.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(tensors)
    }

    fn random_tensors(&self, component: &str, seed: u64) -> Result<RandomTensors> {
        let config: ComponentConfig = self.json(&format!("{component}/config.json"))?;
        let projects = config.architectures.iter().any(|name| name.ends_with("WithProjection"));
        Ok(RandomTensors { seed, component: component.into(), projects })
    }

    /// The safetensors files that hold `component`, relative to the base.
    fn weight_paths(&self, component: &str) -> Result<Vec<String>> {
        for stem in WEIGHT_STEMS {
            let whole = format!("{component}/{stem}.safetensors");
            if self.exists(&whole) {
                return Ok(vec![whole]);
            }
            for index in index_names(stem) {
                let index = format!("{component}/{index}");
                if self.exists(&index) {
                    return self.shard_paths(component, &index);
                }
            }
        }
        Err(self.no_weights(component))
    }

    /// The shards named by the index file, every one of them there.
    fn shard_paths(&self, component: &str, index: &str) -> Result<Vec<String>> {
        let shards: BTreeSet<String> = self.json::<ShardIndex>(index)?.weight_map.into_values().collect();
        let (found, missing): (Vec<String>, Vec<String>) = shards
            .into_iter()
            .map(|shard| format!("{component}/{shard}"))
            .partition(|path| is_inside(path) && self.exists(path));
        if missing.is_empty() { Ok(found) } else { Err(Error::MissingShards { component: component.into(), missing }) }
    }

    /// Why `component` has no usable weights: none at all, or pickle only.
    fn no_weights(&self, component: &str) -> Error {
        let pickles = self.pickles(component);
        if !pickles.is_empty() {
            return Error::PickleWeights { component: component.into(), found: pickles };
        }
        let tried = WEIGHT_STEMS.iter().map(|stem| format!("{component}/{stem}.safetensors")).collect();
        Error::MissingWeights { component: component.into(), tried }
    }

    fn pickles(&self, component: &str) -> Vec<String> {
        let Location::Folder(folder) = &self.location else { return Vec::new() };
        let Ok(entries) = std::fs::read_dir(folder.join(component)) else { return Vec::new() };
        let mut found: Vec<String> = entries
            .filter_map(|entry| entry.ok())
            .filter(|entry| is_pickle(&entry.path()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        found.sort();
        found
    }
}

/// What a component's `config.json` says about which optional tensors it has.
#[derive(serde::Deserialize)]
struct ComponentConfig {
    #[serde(default)]
    architectures: Vec<String>,
}

fn find(files: &'static [EmbeddedFile], path: &str) -> Option<&'static [u8]> {
    files.iter().find(|file| file.path == path).map(|file| file.bytes)
}

/// `*.safetensors.index.json`: which file holds which tensor.
#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The two ways an index of `stem` is spelt: the variant before or after `index`.
fn index_names(stem: &str) -> Vec<String> {
    let mut names = vec![format!("{stem}.safetensors.index.json")];
    if let Some((model, variant)) = stem.split_once('.') {
        names.push(format!("{model}.safetensors.index.{variant}.json"));
    }
    names
}

/// Whether a relative path stays inside the folder it is joined to.
fn is_inside(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

fn is_pickle(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| PICKLE_ENDINGS.contains(&ending.to_ascii_lowercase().as_str()))
}

/// A base that is one pickle file is refused by name rather than as a missing folder.
fn refuse_single_file(path: &Path) -> Result<()> {
    if is_pickle(path) && path.is_file() {
        let found = vec![path.display().to_string()];
        return Err(Error::PickleWeights { component: path.display().to_string(), found });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
