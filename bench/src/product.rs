//! A large matrix product: the fastest work on a machine, which all other work is compared with.

use candle_core::{DType, Device, Tensor};
use catelier_numerics::ops::FrozenLinear;
use catelier_pipelines::training::TrainError;
use serde::Serialize;

use crate::{Rate, Workload, measure};

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
    /// Those of candle when memory is short.
    pub fn new(side: usize, weights: DType, device: &Device) -> candle_core::Result<Self> {
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

/// The best rates of a large matrix product, by element type of the weights.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ProductRates {
    /// With weights of f32.
    pub f32: Rate,
    /// With weights of bf16.
    pub bf16: Rate,
}

/// Side of the matrices that fill a CPU, and another device.
const SIDE: usize = 1024;
const DEVICE_SIDE: usize = 8192;
const REPEATS: usize = 8;

/// Measures large products on `device`, with weights of either type.
///
/// # Errors
/// Those of [`product_rate`].
pub fn product_rates(device: &Device) -> Result<ProductRates, TrainError> {
    let side = if device.is_cpu() { SIDE } else { DEVICE_SIDE };
    let rate = |weights| product_rate(side, weights, device, REPEATS);
    Ok(ProductRates { f32: rate(DType::F32)?, bf16: rate(DType::BF16)? })
}

/// The best rate in `repeat` products of two `side` × `side` matrices, after one that is not measured.
///
/// # Errors
/// Those of [`MatrixProduct::new`] and [`measure`].
pub fn product_rate(side: usize, weights: DType, device: &Device, repeat: usize) -> Result<Rate, TrainError> {
    let mut product = MatrixProduct::new(side, weights, device)?;
    Ok(measure(&mut product, device, 1, repeat)?.best_rate())
}
