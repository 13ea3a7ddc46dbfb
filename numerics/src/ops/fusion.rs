//! The operations that are fused with a frozen layer, by name: a normalisation or GEGLU before it, a residual after it.

use candle_core::{Result, Tensor};
use catelier_kernels::apply_added;

use super::activation::Geglu;
use super::layer::{Constants, Layer, NoPrologue, Product};
use super::norm::{FrozenGroupNorm, FrozenLayerNorm};

/// The operation before a frozen layer.
#[derive(Debug, Clone, Copy)]
pub enum Prologue<'a> {
    /// [`FrozenLayerNorm::forward`].
    LayerNorm(&'a FrozenLayerNorm),
    /// [`FrozenGroupNorm::forward`].
    GroupNorm(&'a FrozenGroupNorm),
    /// [`FrozenGroupNorm::forward_silu`].
    GroupNormSilu(&'a FrozenGroupNorm),
    /// [`geglu`](super::geglu).
    Geglu,
}

impl Prologue<'_> {
    /// Applies the prologue as a separate node.
    ///
    /// # Errors
    /// Errors of the operation.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::LayerNorm(norm) => norm.forward(x),
            Self::GroupNorm(norm) => norm.forward(x),
            Self::GroupNormSilu(norm) => norm.forward_silu(x),
            Self::Geglu => super::geglu(x),
        }
    }
}

/// The operations fused with a frozen layer: `residual + layer(prologue(x))`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fusion<'a> {
    /// The operation on the input.
    pub prologue: Option<Prologue<'a>>,
    /// Added to the result, of the same shape.
    pub residual: Option<&'a Tensor>,
}

impl<'a> Fusion<'a> {
    /// A fusion with a prologue and no residual.
    pub fn after(prologue: Prologue<'a>) -> Self {
        Self { prologue: Some(prologue), residual: None }
    }

    /// Adds `residual` to the fusion.
    #[must_use]
    pub fn onto(self, residual: &'a Tensor) -> Self {
        Self { residual: Some(residual), ..self }
    }

    /// Applies prologue, `layer` and residual as separate nodes.
    ///
    /// # Errors
    /// Errors of the prologue and of the layer.
    pub fn run(self, x: &Tensor, layer: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let y = layer(&self.apply_prologue(x)?)?;
        match self.residual {
            Some(residual) => residual + y,
            None => Ok(y),
        }
    }

    /// The input of the layer: the result of the prologue, as a separate node.
    ///
    /// # Errors
    /// Errors of the prologue.
    pub fn apply_prologue(self, x: &Tensor) -> Result<Tensor> {
        self.prologue.map_or_else(|| Ok(x.clone()), |prologue| prologue.forward(x))
    }
}

/// `residual + constants + product(prologue(x))`, on the CPU, in f32 or f64.
pub(super) fn frozen_layer<P: Product>(
    x: &Tensor,
    product: P,
    constants: Constants,
    fusion: Fusion<'_>,
) -> Result<Tensor> {
    let residual = fusion.residual;
    match fusion.prologue {
        None => apply_added(x, residual, Layer { prologue: NoPrologue, product, constants }),
        Some(Prologue::LayerNorm(norm)) => {
            apply_added(x, residual, Layer { prologue: norm.kernel(x)?, product, constants })
        }
        Some(Prologue::GroupNorm(norm)) => {
            apply_added(x, residual, Layer { prologue: norm.kernel(x)?, product, constants })
        }
        Some(Prologue::GroupNormSilu(norm)) => {
            apply_added(x, residual, Layer { prologue: norm.kernel_silu(x)?, product, constants })
        }
        Some(Prologue::Geglu) => apply_added(x, residual, Layer { prologue: Geglu, product, constants }),
    }
}
