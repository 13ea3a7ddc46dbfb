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
    /// Two `side` × `side` matrices on `device`, one f32 and one of `weights`; 2 · `side`³ operations.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when memory is short.
    pub fn new(side: usize, weights: DType, device: &Device) -> Result<Self> {
        let x = Tensor::ones((side, side), DType::F32, device)?;
        Ok(Self { layer: FrozenLinear::new(&x.to_dtype(weights)?, None)?, x })
    }
}

impl Workload for MatrixProduct {
    fn run(&mut self) -> Result<(), TrainError> {
        self.layer.forward(&self.x)?;
        Ok(())
    }
}
