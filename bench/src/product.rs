//! A large matrix product, the work with the highest rate on a machine; the rates of other work are compared with it.

use candle_core::{DType, Device, Tensor};
use catelier_numerics::ops::FrozenLinear;
use catelier_pipelines::training::TrainError;
use serde::Serialize;

use crate::{Rate, Workload, measure};

/// The product of two square matrices, with the kernel of the frozen linear layers.
#[derive(Debug)]
pub struct MatrixProduct {
    layer: FrozenLinear,
    x: Tensor,
}

impl MatrixProduct {
    /// Two `side` × `side` matrices on `device`: weights of type `weights`, and activations. One product has 2 ·
    /// `side`³ operations.
    ///
    /// # Errors
    /// An error if memory is short.
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

/// The best rates of a large matrix product, by type of the weights.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ProductRates {
    /// Rate with f32 weights.
    pub f32: Rate,
    /// Rate with bf16 weights.
    pub bf16: Rate,
}

/// Side of the matrices on a CPU; `DEVICE_SIDE` is the side on other devices, which need larger ones to be busy.
const SIDE: usize = 1024;
const DEVICE_SIDE: usize = 8192;
const REPEATS: usize = 8;

/// Measures large products on `device` with weights of both types.
///
/// # Errors
/// Those of [`product_rate`].
pub fn product_rates(device: &Device) -> Result<ProductRates, TrainError> {
    let side = if device.is_cpu() { SIDE } else { DEVICE_SIDE };
    let rate = |weights| product_rate(side, weights, device, REPEATS);
    Ok(ProductRates { f32: rate(DType::F32)?, bf16: rate(DType::BF16)? })
}

/// The best rate in `repeat` products of two `side` × `side` matrices, after one unmeasured product.
///
/// # Errors
/// Those of [`MatrixProduct::new`] and [`measure`].
pub fn product_rate(side: usize, weights: DType, device: &Device, repeat: usize) -> Result<Rate, TrainError> {
    let mut product = MatrixProduct::new(side, weights, device)?;
    Ok(measure(&mut product, device, 1, repeat)?.best_rate())
}
