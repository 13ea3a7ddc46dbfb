//! The weights file as the backend of candle-nn's `VarBuilder`. A tower requests tensors by name and shape; tensors
//! that do not fit are collected, so that the error names all of them.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result as CandleResult, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use catelier_numerics::tensor_file::TensorFile;
use sha2::{Digest, Sha256};

use crate::error::{Computing, Error, Result};

const FILE: &str = "model.safetensors";

/// Number of offenders after which building a tower stops, since a damaged configuration may request any number of
/// layers.
const MOST_OFFENDERS: usize = 1000;

/// The tensors of a model, converted to f32.
pub(super) struct Weights {
    file: TensorFile,
    offenders: Mutex<Vec<String>>,
}

impl Weights {
    /// Opens a safetensors file.
    pub(super) fn open(bytes: Vec<u8>) -> Result<Self> {
        let file = TensorFile::from_bytes(FILE, bytes).map_err(|source| Error::Weights { source: Box::new(source) })?;
        Ok(Self { file, offenders: Mutex::new(Vec::new()) })
    }

    /// The result of `build`; an error lists all requested tensors that are missing or have another shape.
    pub(super) fn build<T>(self, device: &Device, build: impl FnOnce(VarBuilder) -> CandleResult<T>) -> Result<T> {
        let built = build(VarBuilder::from_backend(Box::new(&self), DType::F32, device.clone()));
        let offenders = self.offenders.into_inner().unwrap_or_else(PoisonError::into_inner);
        if offenders.is_empty() { built.computing("CLIP weights") } else { Err(Error::TensorMismatch { offenders }) }
    }

    /// Records the offender and returns zeros in place of its tensor. Broadcast zeros take no memory, but a layer may copy
    /// them: a shape that the whole file could not fill ends the building.
    fn offend(&self, offender: String, shape: Shape, dtype: DType, device: &Device) -> CandleResult<Tensor> {
        let mut offenders = self.offenders.lock().unwrap_or_else(PoisonError::into_inner);
        offenders.push(offender);
        let elements = shape.dims().iter().try_fold(1_u64, |product, dim| product.checked_mul(*dim as u64));
        if offenders.len() >= MOST_OFFENDERS || elements.is_none_or(|elements| elements > self.file.byte_count()) {
            candle_core::bail!("the tensors do not fit");
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

    /// Always true: if a tensor were reported absent, a tower would create one instead of requesting it.
    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    catelier_numerics::hex::encode(Sha256::digest(bytes))
}
