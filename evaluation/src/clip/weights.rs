//! The weights file, checked against the configuration before anything is computed.

use candle_core::{DType, Device, Tensor};
use catelier_numerics::ops::{FrozenLayerNorm, FrozenLinear};
use catelier_numerics::tensor_file::TensorFile;
use sha2::{Digest, Sha256};

use super::config::ClipConfig;
use super::{image_tower, text_tower};
use crate::error::{Computing, Error, Result};

/// The name of a tensor and the shape it must have.
pub(super) type Expected = (String, Vec<usize>);

/// The tensors of a CLIP model, handed out in f32.
pub(super) struct Weights {
    file: TensorFile,
    device: Device,
}

impl Weights {
    /// Opens the file and checks that every tensor of the configuration is there in its shape.
    pub(super) fn open(bytes: Vec<u8>, config: &ClipConfig, device: &Device) -> Result<Self> {
        let file = TensorFile::from_bytes("model.safetensors", bytes)
            .map_err(|source| Error::Weights { source: Box::new(source) })?;
        let mut expected = vec![("logit_scale".to_owned(), vec![])];
        image_tower::expect(config, &mut expected);
        text_tower::expect(config, &mut expected);
        let offenders = offenders(&file, &expected);
        if !offenders.is_empty() {
            return Err(Error::TensorMismatch { offenders });
        }
        Ok(Self { file, device: device.clone() })
    }

    /// A tensor in f32.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor =
            self.file.tensor(name, &self.device).map_err(|source| Error::Weights { source: Box::new(source) })?;
        tensor.to_dtype(DType::F32).computing("CLIP weights")
    }

    /// A tensor of one value.
    pub(super) fn scalar(&self, name: &str) -> Result<f64> {
        let value = self.tensor(name)?.to_scalar::<f32>();
        value.map(f64::from).computing("CLIP weights")
    }

    /// A linear layer with bias: `<path>.weight`, `<path>.bias`.
    pub(super) fn linear(&self, path: &str) -> Result<FrozenLinear> {
        let weight = self.tensor(&format!("{path}.weight"))?;
        let bias = self.tensor(&format!("{path}.bias"))?;
        FrozenLinear::new(&weight, Some(&bias)).computing("CLIP weights")
    }

    /// A linear layer without bias: `<path>.weight`.
    pub(super) fn projection(&self, path: &str) -> Result<FrozenLinear> {
        let weight = self.tensor(&format!("{path}.weight"))?;
        FrozenLinear::new(&weight, None).computing("CLIP weights")
    }

    /// A layer norm: `<path>.weight`, `<path>.bias`.
    pub(super) fn norm(&self, path: &str, epsilon: f64) -> Result<FrozenLayerNorm> {
        let weight = self.tensor(&format!("{path}.weight"))?;
        let bias = self.tensor(&format!("{path}.bias"))?;
        FrozenLayerNorm::new(&weight, &bias, epsilon).computing("CLIP weights")
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn offenders(file: &TensorFile, expected: &[Expected]) -> Vec<String> {
    let offence = |(name, shape): &Expected| match file.shape(name) {
        Err(_) => Some(format!("`{name}` is missing")),
        Ok(found) if found != shape.as_slice() => Some(format!("`{name}` expected {shape:?}, found {found:?}")),
        Ok(_) => None,
    };
    expected.iter().filter_map(offence).collect()
}

/// Adds a weight and a bias of `out` values to the expected tensors.
pub(super) fn expect_with_bias(path: &str, weight: Vec<usize>, expected: &mut Vec<Expected>) {
    let out = weight[0];
    expected.push((format!("{path}.weight"), weight));
    expected.push((format!("{path}.bias"), vec![out]));
}
