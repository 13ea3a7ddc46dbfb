//! Adapters that stay in their files and are read module by module.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Tensor;
use catelier_numerics::tensor_file::{ClosedFile, TensorPlace};

use super::contents::Contents;
use super::{Format, Integrity, MatchReport, Metadata};
use crate::dora::DoraFactors;
use crate::error::{Error, Result};
use crate::factors::LoraFactors;
use crate::update::LayerUpdate;

/// An adapter file whose header is checked, and whose values are read later: what [`LoadedAdapter`](super::LoadedAdapter)
/// has, with [`AdapterFile`] in the place of the adapter.
#[derive(Debug, Clone)]
pub struct OpenedAdapter {
    /// The file.
    pub file: AdapterFile,
    /// The modules that matched the base's, by component.
    pub report: MatchReport,
    /// The metadata of the file.
    pub metadata: Metadata,
    /// The format of the file.
    pub format: Format,
    /// SHA-256 of the bytes after the header.
    pub model_hash: String,
    /// Whether the file is as it was written; never [`Integrity::Damaged`], which is refused.
    pub integrity: Integrity,
}

/// An adapter that stays in its file, which is opened for every module that is read and refused if it was changed.
#[derive(Debug, Clone)]
pub struct AdapterFile {
    path: PathBuf,
    file: ClosedFile,
    updates: Arc<BTreeMap<String, StoredUpdate>>,
}

/// The update of one module in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredUpdate {
    pub(super) down: StoredTensor,
    pub(super) up: StoredTensor,
    /// `Some` for a DoRA.
    pub(super) magnitude: Option<StoredTensor>,
    pub(super) alpha: f64,
}

/// A tensor of an update in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredTensor {
    /// Its name in the file.
    pub(super) name: String,
    pub(super) place: TensorPlace,
    /// Its shape in the update.
    pub(super) shape: Vec<usize>,
}

impl AdapterFile {
    pub(super) fn new(contents: &Contents, updates: BTreeMap<String, StoredUpdate>) -> Result<Self> {
        let in_memory = || Error::io(&contents.path)(std::io::ErrorKind::Unsupported.into());
        let file = contents.file.closed().ok_or_else(in_memory)?;
        Ok(Self { path: contents.path.clone(), file, updates: Arc::new(updates) })
    }

    /// Module paths and what is known of their updates, in the order of the paths.
    pub fn updates(&self) -> impl ExactSizeIterator<Item = (&str, &StoredUpdate)> {
        self.updates.iter().map(|(module, update)| (module.as_str(), update))
    }

    /// Takes the structure of `other` in the place of an equal one, so that files of one structure hold it once.
    pub fn share_structure(&mut self, other: &Self) {
        if self.updates == other.updates {
            self.updates = Arc::clone(&other.updates);
        }
    }

    /// Reads the update of one module, f32 on the CPU; `None` if the file has none. Whether values are finite is not checked.
    ///
    /// # Errors
    /// [`Error::Numerics`] for a file that cannot be read, or was changed since it was opened.
    pub fn read(&self, module: &str) -> Result<Option<LayerUpdate>> {
        let Some(stored) = self.updates.get(module) else { return Ok(None) };
        let failed = || Error::numerics(format!("reading `{}`", self.path.display()));
        let file = self.file.reopen().map_err(failed())?;
        stored.read(|tensor| file.tensor_f32(&tensor.name, &tensor.place).map_err(failed())).map(Some)
    }
}

impl StoredUpdate {
    /// The names and shapes of the update's tensors, as [`LayerUpdate::tensors`] has them.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &[usize])> {
        let magnitude = self.magnitude.as_ref().map(|tensor| ("magnitude", tensor.shape.as_slice()));
        [("down", self.down.shape.as_slice()), ("up", &self.up.shape)].into_iter().chain(magnitude)
    }

    /// Numerator of the scale of the low-rank product.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// The update with the tensors that `read` returns.
    pub(super) fn read(&self, mut read: impl FnMut(&StoredTensor) -> Result<Tensor>) -> Result<LayerUpdate> {
        let mut shaped = |tensor: &StoredTensor| {
            read(tensor)?.reshape(tensor.shape.as_slice()).map_err(Error::tensor("reshaping factors"))
        };
        let factors = LoraFactors::new(shaped(&self.down)?, shaped(&self.up)?, self.alpha)?;
        match &self.magnitude {
            None => Ok(factors.into()),
            Some(magnitude) => Ok(DoraFactors::new(factors, shaped(magnitude)?)?.into()),
        }
    }
}
