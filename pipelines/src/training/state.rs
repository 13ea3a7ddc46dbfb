//! The saved state of a run: all data that a step hands to the next one.
//!
//! A state is one safetensors file `step-000120.safetensors` with a checksum over all of its bytes. It is written under
//! another name and then renamed, so a crash during the write leaves the previous state whole. Noise and the order of the
//! images are functions of (seed, step) and need no saving.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use catelier_numerics::finite::is_finite;
use catelier_numerics::tensor_file::{self, Checksum, TensorFile};

use super::fingerprint::RunFingerprint;
use super::{Optimizer, TrainError};

const FORMAT: &str = "catelier-train-state";
const VERSION: &str = "3";
/// The last version without a checksum; it is still read.
const VERSION_WITHOUT_CHECKSUM: &str = "2";
/// Number of states to keep. If the disk damages the newest, the older one serves.
const KEPT: usize = 2;

/// The saved states of one run.
#[derive(Debug, Clone)]
pub struct StateFolder(PathBuf);

/// Where a resumed run goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// Optimizer steps that the restored state has made.
    pub step: usize,
    /// Newer states that cannot be used.
    pub unusable: Vec<UnusableState>,
}

/// A saved state that a run cannot go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusableState {
    /// The state file.
    pub path: PathBuf,
    /// Why it cannot be used.
    pub reason: String,
    /// Whether the file is whole, and belongs to a run with other settings, images or base.
    pub is_of_another_run: bool,
}

impl fmt::Display for UnusableState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.path.display(), self.reason)
    }
}

impl StateFolder {
    /// The states in `folder`, which may not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Whether the folder has no state.
    pub fn is_empty(&self) -> bool {
        self.newest_first().map(|files| files.is_empty()).unwrap_or(true)
    }

    /// Saves the state after `step`, then removes all older states but the newest of them.
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
        tensor_file::write_checked(self.path_of(step), &optimizer.tensors(), &metadata)?;
        self.remove_older_than(step)
    }

    /// Restores the newest state that is whole and belongs to this run.
    ///
    /// # Errors
    /// [`TrainError::NothingToResume`]; [`TrainError::NoUsableState`] with the reason for each file.
    pub(super) fn restore(
        &self,
        fingerprint: &RunFingerprint,
        optimizer: &mut Optimizer,
    ) -> Result<Resumed, TrainError> {
        let files = self.newest_first()?;
        if files.is_empty() {
            return Err(TrainError::NothingToResume { folder: self.0.clone() });
        }
        let mut unusable = Vec::new();
        for path in files {
            match restore_from(&path, fingerprint, optimizer) {
                Ok(step) => return Ok(Resumed { step, unusable }),
                Err(fault) => unusable.push(fault.of(path)),
            }
        }
        Err(TrainError::NoUsableState { folder: self.0.clone(), states: unusable })
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

    /// A state of a later step stays: this run did not save it, so it is none of an older one.
    fn remove_older_than(&self, step: usize) -> Result<(), TrainError> {
        let older = self.newest_first()?.into_iter().filter(|path| step_of(path) < Some(step));
        for path in older.skip(KEPT - 1) {
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

/// Why a state cannot be used.
enum Fault {
    /// The file is not as it was written, or is no state.
    Damaged(String),
    /// The file is whole, and belongs to another run.
    OtherRun(String),
}

impl Fault {
    fn of(self, path: PathBuf) -> UnusableState {
        let is_of_another_run = matches!(self, Self::OtherRun(_));
        let (Self::Damaged(reason) | Self::OtherRun(reason)) = self;
        UnusableState { path, reason, is_of_another_run }
    }
}

/// Every error of a file is a reason not to use it: its chain of causes in one line.
impl<E: std::error::Error> From<E> for Fault {
    fn from(error: E) -> Self {
        let causes = std::iter::successors(error.source(), |error| error.source());
        Self::Damaged(causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}")))
    }
}

fn restore_from(path: &Path, fingerprint: &RunFingerprint, optimizer: &mut Optimizer) -> Result<usize, Fault> {
    let file = TensorFile::open(path)?;
    check_content(&file)?;
    if let Some(difference) = fingerprint.difference(file.metadata()) {
        return Err(Fault::OtherRun(format!("it belongs to another run: {difference}")));
    }
    let (named, stated) = (step_of(path), value(&file, "step"));
    let step = named.filter(|step| step.to_string() == stated);
    let step = step.ok_or_else(|| Fault::Damaged(format!("its name and its step `{stated}` do not agree")))?;
    optimizer.restore(&file)?;
    Ok(step)
}

/// Refuses files that are no states, damaged ones, and values that no training can go on from.
fn check_content(file: &TensorFile) -> Result<(), Fault> {
    let (format, version) = (value(file, "format"), value(file, "version"));
    let damaged = |reason: &str| Err(Fault::Damaged(reason.into()));
    match (file.checksum()?, format, version) {
        (Checksum::Differs, _, _) => return damaged("it is damaged: its checksum does not hold"),
        (_, format, _) if format != FORMAT => return damaged("it is no saved state of a training run"),
        (Checksum::Holds, _, VERSION) | (Checksum::Absent, _, VERSION_WITHOUT_CHECKSUM) => {}
        (Checksum::Absent, _, VERSION) => return damaged("it is damaged: its checksum is missing"),
        _ => return damaged(&format!("version `{version}` is not read; this program saves version {VERSION}")),
    }
    for name in file.names() {
        if !is_finite(&file.tensor(name, &Device::Cpu)?)? {
            return damaged(&format!("`{name}` has values that are not finite"));
        }
    }
    Ok(())
}

fn value<'f>(file: &'f TensorFile, key: &str) -> &'f str {
    file.metadata().get(key).map(String::as_str).unwrap_or("absent")
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

    fn restore(&mut self, file: &TensorFile) -> Result<(), Fault> {
        for (name, parameter) in self.parameters.iter() {
            let saved = file.tensor(&format!("parameter/{name}"), parameter.device())?;
            if saved.shape() != parameter.shape() {
                let (expected, found) = (parameter.shape(), saved.shape());
                return Err(Fault::Damaged(format!("`{name}`: expected {expected:?}, found {found:?}")));
            }
            parameter.set(&saved)?;
        }
        self.adamw.restore(&section(file, "optimizer/")?)?;
        if let Some(average) = &mut self.average {
            average.restore(&section(file, "average/")?, value(file, "average_updates").parse()?)?;
        }
        Ok(())
    }
}

/// The tensors whose names start with `prefix`, by the rest of the name.
fn section(file: &TensorFile, prefix: &str) -> Result<BTreeMap<String, Tensor>, catelier_numerics::Error> {
    let mut tensors = BTreeMap::new();
    for name in file.names() {
        if let Some(short) = name.strip_prefix(prefix) {
            tensors.insert(short.to_string(), file.tensor(name, &Device::Cpu)?);
        }
    }
    Ok(tensors)
}
