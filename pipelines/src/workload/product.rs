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
    /// Two `side` × `side` matrices of `dtype` on `device`; 2 · `side`³ operations.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] when memory is short.
    pub fn new(side: usize, dtype: DType, device: &Device) -> Result<Self> {
        let ones = Tensor::ones((side, side), dtype, device)?;
        Ok(Self { layer: FrozenLinear::new(&ones, None)?, x: ones })
    }
}

impl Workload for MatrixProduct {
    fn run(&mut self) -> Result<(), TrainError> {
        self.layer.forward(&self.x)?;
        Ok(())
    }
}
