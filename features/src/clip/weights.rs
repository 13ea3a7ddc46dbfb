//! The weights file behind candle-nn's `VarBuilder`: a tower asks for its tensors by name and shape, and those that do
//! not fit are collected, so that an error names all of them and not the first.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result as CandleResult, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use catelier_numerics::tensor_file::TensorFile;
use sha2::{Digest, Sha256};

use crate::error::{Computing, Error, Result};

const FILE: &str = "model.safetensors";

/// Offenders after which building a tower stops: a configuration with a made-up number of layers must not ask for ever.
const MOST_OFFENDERS: usize = 1000;

/// The tensors of a model, handed out in f32.
pub(super) struct Weights {
    file: TensorFile,
    offenders: Mutex<Vec<String>>,
}

impl Weights {
    /// Opens the file.
    pub(super) fn open(bytes: Vec<u8>) -> Result<Self> {
        let file = TensorFile::from_bytes(FILE, bytes).map_err(|source| Error::Weights { source: Box::new(source) })?;
        Ok(Self { file, offenders: Mutex::new(Vec::new()) })
    }

    /// What `build` makes of the tensors, or all tensors that it asked for in vain.
    pub(super) fn build<T>(self, device: &Device, build: impl FnOnce(VarBuilder) -> CandleResult<T>) -> Result<T> {
        let built = build(VarBuilder::from_backend(Box::new(&self), DType::F32, device.clone()));
        let offenders = self.offenders.into_inner().unwrap_or_else(PoisonError::into_inner);
        if offenders.is_empty() { built.computing("CLIP weights") } else { Err(Error::TensorMismatch { offenders }) }
    }

    /// Notes the offender and stands in for its tensor with zeros, which take no memory whatever the shape.
    fn offend(&self, offender: String, shape: Shape, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let mut offenders = self.offenders.lock().unwrap_or_else(PoisonError::into_inner);
        offenders.push(offender);
        if offenders.len() >= MOST_OFFENDERS {
            candle_core::bail!("too many tensors do not fit");
        }
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }
}

impl SimpleBackend for &Weights {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let offender = match self.file.shape(name) {
            Ok(found) if found == shape.dims() => return self.get_unchecked(name, dtype, device),
            Ok(found) => format!("`{name}` expected {:?}, found {found:?}", shape.dims()),
            Err(_) => format!("`{name}` is missing"),
        };
        self.offend(offender, shape, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        self.file.tensor(name, device).map_err(candle_core::Error::wrap)?.to_dtype(dtype)
    }

    /// Always: a tower that finds a tensor absent makes one up, and here it must ask for it.
    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
