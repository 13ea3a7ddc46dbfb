//! Random weights of any shape that a network asks for: benchmarks time a network without its files.

use candle_core::{DType, Device, Shape, Tensor};
use catelier_numerics::noise::hashed_uniforms;
use sha2::{Digest, Sha256};

use crate::error::Result;

/// The tensors of one component as functions of (seed, component, name).
#[derive(Debug)]
pub(super) struct RandomTensors {
    pub(super) seed: u64,
    pub(super) component: String,
    /// Whether the component ends in a projection, according to `architectures` in its configuration.
    pub(super) projects: bool,
}

impl RandomTensors {
    /// Whether the tensor exists; networks ask this for optional tensors.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.projects && name == "text_projection.weight"
    }

    /// Vectors are 1 if they scale and 0 if they shift. Matrices and kernels are uniform in ±1/√(fan in), so
    /// activations neither vanish nor overflow.
    pub(super) fn tensor(&self, name: &str, shape: Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = match shape.dims() {
            [_] if name.ends_with("weight") => Tensor::ones(shape, DType::F32, device)?,
            [_] => Tensor::zeros(shape, DType::F32, device)?,
            dims => {
                let fan_in: usize = dims.iter().skip(1).product();
                let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
                Tensor::from_vec(hashed_uniforms(self.key(name), bound, shape.elem_count()), shape, device)?
            }
        };
        Ok(tensor.to_dtype(dtype)?)
    }

    fn key(&self, name: &str) -> u64 {
        let digest = Sha256::digest(format!("{} {} {name}", self.seed, self.component));
        digest.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
    }
}
