//! The saved state of a run: all data that a step hands to the next one.
//!
//! A state is one safetensors file `step-000120.safetensors`. It is written under another name and then renamed, so a
//! crash during the write leaves the previous state whole. Noise and the order of the images are functions of (seed,
//! step) and need no saving.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use catelier_numerics::tensor_file::{self, TensorFile};

use super::fingerprint::RunFingerprint;
use super::{Optimizer, TrainError};

const FORMAT: &str = "catelier-train-state";
const VERSION: &str = "2";
/// Number of states to keep. If the disk damages the newest, the older one serves.
const KEPT: usize = 2;

/// The saved states of one run.
#[derive(Debug, Clone)]
pub struct StateFolder(PathBuf);

impl StateFolder {
    /// The states in `folder`, which may not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Whether the folder has no state.
    pub fn is_empty(&self) -> bool {
        self.newest_first().map(|files| files.is_empty()).unwrap_or(true)
    }

    /// Saves the state after `step`, then removes all but the newest two states.
    pub(super) fn save(
        &self,
        step: usize,
        fingerprint: &RunFingerprint,
        optimizer: &Optimizer,
    ) -> Result<(), TrainError> {
        fs::create_dir_all(&self.0).map_err(|source| self.folder_error(source))?;
        let updates = optimizer.average.as_ref().map_or(0, |average| average.updates());
        let (step_text, updates) = (step.to_string(), updates.to_string());
        let own = [("format", FORMAT), ("version", VERSION), ("step", &step_text), ("average_updates", &updates)];
        let metadata: BTreeMap<String, String> =
            own.into_iter().chain(fingerprint.parts()).map(|(key, value)| (key.into(), value.into())).collect();
        tensor_file::write(self.path_of(step), &optimizer.tensors(), &metadata)?;
        self.remove_old()
    }

    /// Restores the newest readable state and returns its step.
    ///
    /// # Errors
    /// [`TrainError::NothingToResume`]; [`TrainError::StateUnreadable`] with the reason for each file;
    /// [`TrainError::StateMismatch`] for the state of a run with another fingerprint.
    pub(super) fn restore(&self, fingerprint: &RunFingerprint, optimizer: &mut Optimizer) -> Result<usize, TrainError> {
        let files = self.newest_first()?;
        if files.is_empty() {
            return Err(TrainError::NothingToResume { folder: self.0.clone() });
        }
        let mut reasons = Vec::new();
        for path in files {
            match TensorFile::open(&path) {
                Ok(file) => return restore_from(&path, &file, fingerprint, optimizer),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(TrainError::StateUnreadable { folder: self.0.clone(), reasons })
    }

    fn path_of(&self, step: usize) -> PathBuf {
        self.0.join(format!("step-{step:06}.safetensors"))
    }

    fn newest_first(&self) -> Result<Vec<PathBuf>, TrainError> {
        if !self.0.exists() {
            return Ok(Vec::new());
        }
        let entries = fs::read_dir(&self.0).map_err(|source| self.folder_error(source))?;
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| step_of(path).is_some())
            .collect();
        files.sort_by_key(|path| std::cmp::Reverse(step_of(path)));
        Ok(files)
    }

    fn remove_old(&self) -> Result<(), TrainError> {
        for path in self.newest_first()?.into_iter().skip(KEPT) {
            fs::remove_file(path).map_err(|source| self.folder_error(source))?;
        }
        Ok(())
    }

    fn folder_error(&self, source: std::io::Error) -> TrainError {
        TrainError::StateFolder { folder: self.0.clone(), source }
    }
}

/// The step in a file name of the form `step-000120.safetensors`.
fn step_of(path: &Path) -> Option<usize> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
}

fn restore_from(
    path: &Path,
    file: &TensorFile,
    fingerprint: &RunFingerprint,
    optimizer: &mut Optimizer,
) -> Result<usize, TrainError> {
    let mismatch = |reason: String| TrainError::StateMismatch { path: path.to_path_buf(), reason };
    let value = |key: &str| file.metadata().get(key).map(String::as_str).unwrap_or("absent");
    for (key, expected) in [("format", FORMAT), ("version", VERSION)].into_iter().chain(fingerprint.parts()) {
        if value(key) != expected {
            let found = value(key);
            return Err(mismatch(format!("expected {key} `{expected}`, found `{found}`")));
        }
    }
    let step =
        value("step").parse().map_err(|_| mismatch(format!("expected a step number, found `{}`", value("step"))))?;
    optimizer.restore(file, &mismatch)?;
    Ok(step)
}

impl Optimizer {
    fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        for (name, parameter) in self.parameters.iter() {
            tensors.insert(format!("parameter/{name}"), parameter.as_tensor().clone());
        }
        for (name, tensor) in self.adamw.state() {
            tensors.insert(format!("optimizer/{name}"), tensor);
        }
        for (name, tensor) in self.average.iter().flat_map(|average| average.average()) {
            tensors.insert(format!("average/{name}"), tensor.clone());
        }
        tensors
    }

    fn restore(&mut self, file: &TensorFile, mismatch: &dyn Fn(String) -> TrainError) -> Result<(), TrainError> {
        for (name, parameter) in self.parameters.iter() {
            let saved = file.tensor(&format!("parameter/{name}"), parameter.device())?;
            if saved.shape() != parameter.shape() {
                let (expected, found) = (parameter.shape(), saved.shape());
                return Err(mismatch(format!("`{name}`: expected {expected:?}, found {found:?}")));
            }
            parameter.set(&saved)?;
        }
        self.adamw.restore(&section(file, "optimizer/")?)?;
        if let Some(average) = &mut self.average {
            let updates = file.metadata().get("average_updates").and_then(|updates| updates.parse().ok());
            average.restore(&section(file, "average/")?, updates.unwrap_or(0))?;
        }
        Ok(())
    }
}

/// The tensors whose names start with `prefix`, by the rest of the name.
fn section(file: &TensorFile, prefix: &str) -> Result<BTreeMap<String, Tensor>, TrainError> {
    let mut tensors = BTreeMap::new();
    for name in file.names() {
        if let Some(short) = name.strip_prefix(prefix) {
            tensors.insert(short.to_string(), file.tensor(name, &Device::Cpu)?);
        }
    }
    Ok(tensors)
}
