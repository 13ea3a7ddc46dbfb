//! A large matrix product: how fast this machine can be at all, which everything else is compared with.

use candle_core::{DType, Device, Tensor};
use catelier_numerics::ops::FrozenLinear;

use super::Workload;
use crate::error::Result;
use crate::train::TrainError;

/// The product of two square matrices, through the kernel of every frozen linear layer.
#[derive(Debug)]
pub struct MatrixProduct {
    layer: FrozenLinear,
    x: Tensor,
}

impl MatrixProduct {
    /// Two `side` × `side` matrices on `device`, one of `weights` and one of the activations that go with them; 2 · `side`³
    /// operations.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when memory is short.
    pub fn new(side: usize, weights: DType, device: &Device) -> Result<Self> {
        let weight = Tensor::ones((side, side), weights, device)?;
        let activations = if device.is_cpu() { DType::F32 } else { weights };
        Ok(Self { x: weight.to_dtype(activations)?, layer: FrozenLinear::new(&weight, None)? })
    }
}

impl Workload for MatrixProduct {
    fn run(&mut self) -> Result<(), TrainError> {
        self.layer.forward(&self.x)?;
        Ok(())
    }
}
