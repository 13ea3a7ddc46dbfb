//! The golden folder: tiny models and the reference tensors computed from them.
//!
//! The layout is
//!
//! ```text
//! golden/tiny-sd1 … tiny-clip      model folders
//! golden/fixtures/<topic>.safetensors
//! golden/fixtures/manifest.json    what each tensor is, its float32 noise, each topic's facts
//! ```
//!
//! Everything here panics with a sentence if a file or a name is missing: it serves tests only.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

/// The environment variable that points the tests at another golden folder.
pub const GOLDEN_DIR_VARIABLE: &str = "CATELIER_GOLDEN_DIR";

/// A golden folder with its manifest.
#[derive(Debug, Clone)]
pub struct Golden {
    folder: PathBuf,
    manifest: Value,
}

impl Golden {
    /// Opens the folder named by `CATELIER_GOLDEN_DIR`, or the repository's own `golden/`.
    ///
    /// A relative folder is relative to the repository's root, where users type it; cargo runs each room's tests in the
    /// room's own folder.
    ///
    /// # Panics
    /// When the folder or its manifest cannot be read.
    #[must_use]
    pub fn open() -> Self {
        let named = std::env::var_os(GOLDEN_DIR_VARIABLE).map_or_else(|| "golden".into(), PathBuf::from);
        Self::at(&repository().join(named))
    }

    /// Opens a golden folder by its path.
    ///
    /// # Panics
    /// When `fixtures/manifest.json` is missing or not JSON.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        let path = folder.join("fixtures/manifest.json");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("cannot read golden manifest {}: {error}", path.display()));
        let manifest = serde_json::from_str(&strict_json(&text))
            .unwrap_or_else(|error| panic!("golden manifest {} is not JSON: {error}", path.display()));
        Self { folder: folder.to_path_buf(), manifest }
    }

    /// The golden folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The whole of `fixtures/manifest.json`.
    #[must_use]
    pub fn manifest(&self) -> &Value {
        &self.manifest
    }

    /// The folder of a tiny model, for instance `tiny-sd1`.
    ///
    /// # Panics
    /// When there is no such folder.
    #[must_use]
    pub fn model(&self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        assert!(path.is_dir(), "no golden model folder {}", path.display());
        path
    }

    /// The path of a file in `fixtures/`, for instance `adapter_kohya.safetensors`.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        let path = self.folder.join("fixtures").join(name);
        assert!(path.is_file(), "no golden file {}", path.display());
        path
    }

    /// A JSON file in `fixtures/`, for instance `learning_rates.json`.
    ///
    /// # Panics
    /// When the file is missing or not JSON.
    #[must_use]
    pub fn json(&self, name: &str) -> Value {
        let path = self.file(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{} is not JSON: {error}", path.display()))
    }

    /// The tensors of one file in `fixtures/`, named without its ending: `unet`, `lora_sd1`,
    /// `adapter_kohya`.
    ///
    /// # Panics
    /// When the file cannot be read.
    #[must_use]
    pub fn fixture(&self, topic: &str) -> Fixture {
        let path = self.file(&format!("{topic}.safetensors"));
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
            .unwrap_or_else(|error| panic!("cannot read golden tensors {}: {error}", path.display()));
        let entry = self.manifest["topics"][topic].clone();
        Fixture { topic: topic.to_owned(), tensors, entry }
    }
}

/// The reference tensors of one topic.
#[derive(Debug, Clone)]
pub struct Fixture {
    topic: String,
    tensors: HashMap<String, Tensor>,
    entry: Value,
}

impl Fixture {
    /// A tensor in its stored dtype, float32, int64 or uint8, on the CPU.
    ///
    /// # Panics
    /// When the topic has no tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Tensor {
        self.try_tensor(name).unwrap_or_else(|| panic!("golden topic `{}` has no tensor `{name}`", self.topic))
    }

    /// A tensor; `None` if the topic does not have it.
    #[must_use]
    pub fn try_tensor(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).cloned()
    }

    /// All values of a tensor as float64, row by row.
    ///
    /// # Panics
    /// When the topic has no tensor of that name.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<f64> {
        flat_values(&self.tensor(name))
    }

    /// A tensor of integers (timesteps, token ids) as `u32`.
    ///
    /// # Panics
    /// If the tensor is missing or has a value that is not an integer from 0 on.
    #[must_use]
    pub fn whole_numbers(&self, name: &str) -> Vec<u32> {
        let whole = |value: f64| {
            let number = value as u32;
            assert!(f64::from(number) == value, "`{name}` holds {value}, not a whole number from 0 on");
            number
        };
        self.values(name).into_iter().map(whole).collect()
    }

    /// The names of all tensors, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// All tensors whose name starts with `prefix`, as (rest of the name, tensor), sorted.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Vec<(String, Tensor)> {
        let names = self.names().into_iter();
        names.filter_map(|name| Some((name.strip_prefix(prefix)?.to_owned(), self.tensor(name)))).collect()
    }

    /// The largest difference between the float32 tensor and the same computation in float64; `None` if the manifest
    /// has none (integers, schedulers, adapter files).
    #[must_use]
    pub fn noise(&self, name: &str) -> Option<f64> {
        self.entry["tensors"][name]["noise"].as_f64()
    }

    /// The topic's facts in the manifest besides tensors: prompts, configurations, settings.
    #[must_use]
    pub fn facts(&self) -> &Value {
        &self.entry["facts"]
    }
}

/// Every value of a tensor of any dtype as float64, in row-major order.
pub(crate) fn flat_values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .and_then(|values| values.flatten_all()?.to_vec1())
        .expect("converting a stored tensor to f64 needs only memory")
}

/// The manifest's text with the infinities of sampler settings, which JSON does not have, as `null`.
fn strict_json(text: &str) -> String {
    text.replace(": -Infinity", ": null").replace(": Infinity", ": null")
}

/// The repository's root, one folder above this crate.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Copies a folder with everything in it to `to`, which need not exist.
///
/// # Panics
/// When something cannot be copied.
pub fn copy_folder(from: &Path, to: &Path) {
    try_copy(from, to).unwrap_or_else(|error| panic!("cannot copy {} to {}: {error}", from.display(), to.display()));
}

fn try_copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => try_copy(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixture_gives_its_tensor_with_noise_and_facts() {
        let text = Golden::open().fixture("text");
        let last = text.tensor("sd1.last");
        assert_eq!(last.dims()[0], text.facts()["prompts"].as_array().unwrap().len());
        assert!(text.noise("sd1.last").unwrap() > 0.0);
        assert!(text.noise("sd1.ids").is_none());
    }

    #[test]
    fn names_under_a_prefix_come_sorted_and_without_it() {
        let unet = Golden::open().fixture("unet");
        let names: Vec<String> = unet.under("sd1.up_").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["0", "1"]);
    }

    #[test]
    fn timesteps_read_as_whole_numbers() {
        let unet = Golden::open().fixture("unet");
        assert_eq!(unet.whole_numbers("sd1.timesteps").len(), 2);
    }

    #[test]
    #[should_panic(expected = "golden topic `unet` has no tensor `no.such`")]
    fn a_missing_tensor_is_named() {
        let _ = Golden::open().fixture("unet").tensor("no.such");
    }
}
