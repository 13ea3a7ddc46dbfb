//! The files of a base model: a diffusers folder on disk, the same files embedded in the binary, or only its
//! configurations with random weights.

mod random;
mod stored;
mod weights;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use catelier_numerics::bounded;
use catelier_numerics::tensor_file::TensorFile;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use random::RandomTensors;
pub use stored::StoredTensor;
pub use weights::{TensorOffence, UnsupportedSetting, Weights};

/// One file of a base model, embedded in the binary.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedFile {
    /// The path inside the model folder, with forward slashes, such as `unet/config.json`.
    pub path: &'static str,
    /// The file's content.
    pub bytes: &'static [u8],
}

/// The files of a base model, and its name.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    name: String,
    location: Location,
}

#[derive(Debug, Clone)]
enum Location {
    Folder(PathBuf),
    Embedded(&'static [EmbeddedFile]),
    /// Embedded configurations, and the seed of the random weights.
    Random(&'static [EmbeddedFile], u64),
}

/// The file names that a component's weights may have, in order of preference: full precision before half.
const WEIGHT_STEMS: [&str; 6] = [
    "diffusion_pytorch_model",
    "model",
    "diffusion_pytorch_model.fp16",
    "model.fp16",
    "diffusion_pytorch_model.bf16",
    "model.bf16",
];

/// Largest text file of a base, such as the index of a sharded checkpoint or a tokenizer.
const LARGEST_TEXT: u64 = 16 << 20;

/// Largest configuration file; published ones have a few kilobytes.
const LARGEST_CONFIG: u64 = 1 << 20;

/// Endings of pickle files. Unpickling runs the code in the file.
const PICKLE_ENDINGS: [&str; 5] = ["bin", "ckpt", "pt", "pth", "pkl"];

impl ModelFiles {
    /// A folder in the diffusers layout, named after its last path component.
    ///
    /// Reads nothing yet: the first read reports a folder that does not exist.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        Self { name, location: Location::Folder(path) }
    }

    /// Files embedded in the binary, under the name `embedded`.
    pub fn embedded(files: &'static [EmbeddedFile]) -> Self {
        Self { name: "embedded".into(), location: Location::Embedded(files) }
    }

    /// Embedded configurations with random weights drawn from `seed` on demand: the shapes, the memory and the cost of
    /// the model, without its training. Benchmarks use it.
    pub fn random(name: impl Into<String>, files: &'static [EmbeddedFile], seed: u64) -> Self {
        Self { name: name.into(), location: Location::Random(files, seed) }
    }

    /// The same files under another name, such as their hub id.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder on disk; `None` for embedded files.
    pub fn path(&self) -> Option<&Path> {
        match &self.location {
            Location::Folder(folder) => Some(folder),
            Location::Embedded(_) | Location::Random(..) => None,
        }
    }

    /// The seed of random weights; `None` if files hold the weights.
    pub fn random_seed(&self) -> Option<u64> {
        match &self.location {
            Location::Random(_, seed) => Some(*seed),
            Location::Folder(_) | Location::Embedded(_) => None,
        }
    }

    /// Whether the file `path` (relative, with forward slashes) exists.
    pub fn exists(&self, path: &str) -> bool {
        match &self.location {
            Location::Folder(folder) => folder.join(path).is_file(),
            Location::Embedded(files) | Location::Random(files, _) => find(files, path).is_some(),
        }
    }

    /// The content of the file `path` (relative, with forward slashes), which may have 16 MiB.
    ///
    /// # Errors
    /// [`Error::MissingFile`] or [`Error::ReadFile`].
    pub fn read(&self, path: &str) -> Result<Cow<'static, [u8]>> {
        self.read_at_most(path, LARGEST_TEXT)
    }

    fn read_at_most(&self, path: &str, most: u64) -> Result<Cow<'static, [u8]>> {
        let missing = || Error::MissingFile { base: self.name.clone(), path: path.into() };
        match &self.location {
            Location::Embedded(files) | Location::Random(files, _) => {
                find(files, path).map(Cow::Borrowed).ok_or_else(missing)
            }
            Location::Folder(folder) => {
                refuse_single_file(folder)?;
                let file = folder.join(path);
                bounded::read(&file, most).map(Cow::Owned).map_err(|source| match source.kind() {
                    std::io::ErrorKind::NotFound => missing(),
                    _ => Error::ReadFile { path: file, source },
                })
            }
        }
    }

    /// The JSON file `path`, parsed as a `T`.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and [`Error::InvalidConfig`].
    pub fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        parsed(path, &self.read(path)?)
    }

    /// The configuration file `path`, which may have 1 MiB.
    ///
    /// # Errors
    /// Those of [`json`](Self::json).
    pub(crate) fn config(&self, path: &str) -> Result<Value> {
        parsed(path, &self.read_at_most(path, LARGEST_CONFIG)?)
    }

    /// The weights of `component` (`unet`, `vae`, `text_encoder`, ...). Only the headers of the files are read; each
    /// tensor is read and converted to `dtype` on `device` when the network takes it.
    ///
    /// Looks for `diffusion_pytorch_model` and `model`, whole or sharded (`*.safetensors.index.json`), in full
    /// precision first and then as `fp16` or `bf16` variants.
    ///
    /// # Errors
    /// [`Error::MissingWeights`], [`Error::PickleWeights`], [`Error::MissingShards`], [`Error::Numerics`] for a
    /// file that is not a readable safetensors file.
    pub fn weights(&self, component: &str, dtype: DType, device: &Device) -> Result<Weights> {
        if let Location::Random(_, seed) = &self.location {
            return Ok(Weights::random(self.random_tensors(component, *seed)?, dtype, device));
        }
        Ok(Weights::stored(component, self.weight_files(component)?, dtype, device))
    }

    /// The tensors of `component` in order of name; only the files' headers are read. Random weights have none.
    ///
    /// # Errors
    /// Those of [`weights`](Self::weights).
    pub fn stored_tensors(&self, component: &str) -> Result<Vec<StoredTensor>> {
        let files = if self.random_seed().is_some() { Vec::new() } else { self.weight_files(component)? };
        let files = files.into_iter().map(StoredTensor::all).collect::<Result<Vec<_>>>()?;
        let mut tensors: Vec<StoredTensor> = files.into_iter().flatten().collect();
        tensors.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(tensors)
    }

    /// The safetensors files of `component`, with their headers read and checked.
    fn weight_files(&self, component: &str) -> Result<Vec<TensorFile>> {
        let open = |path: &String| match &self.location {
            Location::Folder(folder) => Ok(TensorFile::open(folder.join(path))?),
            Location::Embedded(files) | Location::Random(files, _) => {
                Ok(TensorFile::from_bytes(path, find(files, path).unwrap_or_default())?)
            }
        };
        self.weight_paths(component)?.iter().map(open).collect()
    }

    fn random_tensors(&self, component: &str, seed: u64) -> Result<RandomTensors> {
        let config: ComponentConfig = self.json(&format!("{component}/config.json"))?;
        let projects = config.architectures.iter().any(|name| name.ends_with("WithProjection"));
        Ok(RandomTensors { seed, component: component.into(), projects })
    }

    /// Paths of the safetensors files of `component`, relative to the base.
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

    /// Paths of the shards that the index file names; all of them exist.
    fn shard_paths(&self, component: &str, index: &str) -> Result<Vec<String>> {
        let shards: BTreeSet<String> = self.json::<ShardIndex>(index)?.weight_map.into_values().collect();
        let (found, missing): (Vec<String>, Vec<String>) = shards
            .into_iter()
            .map(|shard| format!("{component}/{shard}"))
            .partition(|path| is_inside(path) && self.exists(path));
        if missing.is_empty() { Ok(found) } else { Err(Error::MissingShards { component: component.into(), missing }) }
    }

    /// The reason why `component` has no usable weights: no file, or pickle files only.
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

/// The part of a component's `config.json` that decides which optional tensors it has.
#[derive(serde::Deserialize)]
struct ComponentConfig {
    #[serde(default)]
    architectures: Vec<String>,
}

fn parsed<T: DeserializeOwned>(path: &str, json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|source| Error::InvalidConfig { path: path.into(), source })
}

fn find(files: &'static [EmbeddedFile], path: &str) -> Option<&'static [u8]> {
    files.iter().find(|file| file.path == path).map(|file| file.bytes)
}

/// `*.safetensors.index.json`: the file of each tensor.
#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The two spellings of the index of `stem`: the variant before or after `index`.
fn index_names(stem: &str) -> Vec<String> {
    let mut names = vec![format!("{stem}.safetensors.index.json")];
    if let Some((model, variant)) = stem.split_once('.') {
        names.push(format!("{model}.safetensors.index.{variant}.json"));
    }
    names
}

/// Whether a relative path stays inside its folder.
fn is_inside(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

fn is_pickle(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| PICKLE_ENDINGS.contains(&ending.to_ascii_lowercase().as_str()))
}

/// Refuses a base that is a single pickle file by name; otherwise the error would say that a folder is missing.
fn refuse_single_file(path: &Path) -> Result<()> {
    if is_pickle(path) && path.is_file() {
        let found = vec![path.display().to_string()];
        return Err(Error::PickleWeights { component: path.display().to_string(), found });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
