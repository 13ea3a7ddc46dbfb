//! The frozen layers that updates apply to.

use candle_core::{Result, Tensor};
use catelier_numerics::ops::{self, Decomposed, FrozenConv2d, FrozenLinear, Fusion};

use crate::factors::LoraFactors;

/// The computations of a frozen layer that updates need: the layer alone, the layer and an update as one graph node,
/// and the change that an update makes to the layer's result.
pub(crate) trait FrozenLayer {
    /// `residual + layer(x)`.
    fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor>;

    /// `residual + layer(x) + scale·up·down·x`.
    fn forward_lora(&self, x: &Tensor, factors: &LoraFactors, scale: f64, residual: Option<&Tensor>) -> Result<Tensor>;

    /// `scale·up·down·x`.
    fn lora_change(&self, x: &Tensor, factors: &LoraFactors, scale: f64) -> Result<Tensor>;

    /// `residual + layer(x) + strength · (adapted layer(x) − layer(x))`.
    fn forward_dora(&self, x: &Tensor, update: Decomposed<'_>, residual: Option<&Tensor>) -> Result<Tensor>;

    /// `strength · (adapted layer(x) − layer(x))`.
    fn dora_change(&self, x: &Tensor, update: Decomposed<'_>) -> Result<Tensor>;
}

impl FrozenLayer for FrozenLinear {
    fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        self.forward_fused(x, Fusion { prologue: None, residual })
    }

    fn forward_lora(&self, x: &Tensor, factors: &LoraFactors, scale: f64, residual: Option<&Tensor>) -> Result<Tensor> {
        self.forward_adapted(x, &factors.down, &factors.up, scale, residual)
    }

    fn lora_change(&self, x: &Tensor, factors: &LoraFactors, scale: f64) -> Result<Tensor> {
        ops::low_rank_linear(x, &factors.down, &factors.up, scale)
    }

    fn forward_dora(&self, x: &Tensor, update: Decomposed<'_>, residual: Option<&Tensor>) -> Result<Tensor> {
        self.forward_decomposed(x, update, residual)
    }

    fn dora_change(&self, x: &Tensor, update: Decomposed<'_>) -> Result<Tensor> {
        self.decomposed_change(x, update)
    }
}

impl FrozenLayer for FrozenConv2d {
    fn forward(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        self.forward_fused(x, None, Fusion { prologue: None, residual })
    }

    fn forward_lora(&self, x: &Tensor, factors: &LoraFactors, scale: f64, residual: Option<&Tensor>) -> Result<Tensor> {
        self.forward_adapted(x, &factors.down, &factors.up, scale, residual)
    }

    fn lora_change(&self, x: &Tensor, factors: &LoraFactors, scale: f64) -> Result<Tensor> {
        ops::low_rank_conv2d(x, &factors.down, &factors.up, scale, self.stride(), self.padding())
    }

    fn forward_dora(&self, x: &Tensor, update: Decomposed<'_>, residual: Option<&Tensor>) -> Result<Tensor> {
        self.forward_decomposed(x, update, residual)
    }

    fn dora_change(&self, x: &Tensor, update: Decomposed<'_>) -> Result<Tensor> {
        self.decomposed_change(x, update)
    }
}
