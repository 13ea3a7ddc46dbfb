//! Frozen layers that adapters can change; each has a module path.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::{
    FrozenConv2d, FrozenGroupNorm, FrozenLayerNorm, FrozenLinear, Fusion, map_to_tokens, shifted, tokens_to_map,
};

use super::shapes::{Bias, Conv2dShape, Convolution, LinearShape, MatrixShape, NormShape};
use crate::error::Result;
use crate::models::files::Weights;

/// Builds the layers of a network from their shapes and the network's weights.
pub(super) struct LayerBuilder {
    /// First part of module paths, which tensor names lack: `unet`.
    root: String,
    weights: Weights,
    /// The layers built so far.
    frozen_layers: RefCell<FrozenLayers>,
}

/// The frozen layers of a network by module path; they share their weights with the slots.
#[derive(Debug, Clone, Default)]
pub(super) struct FrozenLayers(BTreeMap<String, FrozenLayer>);

#[derive(Debug, Clone)]
enum FrozenLayer {
    Linear(FrozenLinear),
    Conv2d(FrozenConv2d),
}

impl FrozenLayers {
    /// Norm of the weights of each output of the layer at `path`, `[out]`.
    pub(super) fn row_norms(&self, path: &str) -> TensorResult<Tensor> {
        match self.0.get(path) {
            Some(FrozenLayer::Linear(layer)) => layer.row_norms(),
            Some(FrozenLayer::Conv2d(layer)) => layer.row_norms(),
            None => candle_core::bail!("no linear layer or convolution is called `{path}`"),
        }
    }
}

impl LayerBuilder {
    /// A builder of layers below the module path `root`, with `weights` whose tensor names start below `root`.
    pub(super) fn new(root: &str, weights: Weights) -> Self {
        Self { root: root.into(), weights, frozen_layers: RefCell::default() }
    }

    /// The layers built so far.
    pub(super) fn frozen_layers(&self) -> FrozenLayers {
        self.frozen_layers.take()
    }

    /// The weights of all layers.
    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// A linear layer that adapters can change.
    pub(super) fn linear(&self, shape: &LinearShape) -> Result<LinearSlot> {
        let op = self.frozen_linear(shape)?;
        self.keep(&shape.path, FrozenLayer::Linear(op.clone()));
        Ok(LinearSlot { op, path: shape.path.clone() })
    }

    /// A convolution that adapters can change.
    pub(super) fn conv2d(&self, shape: &Conv2dShape) -> Result<Conv2dSlot> {
        let op = self.frozen_conv2d(shape)?;
        self.keep(&shape.path, FrozenLayer::Conv2d(op.clone()));
        Ok(Conv2dSlot { op, path: shape.path.clone() })
    }

    pub(super) fn frozen_linear(&self, shape: &LinearShape) -> Result<FrozenLinear> {
        let weights = self.weights_of(&shape.path);
        let weight = weights.get((shape.out_features, shape.in_features), "weight")?;
        let bias = match shape.bias {
            Bias::With => Some(weights.get(shape.out_features, "bias")?),
            Bias::Without => None,
        };
        Ok(FrozenLinear::new(&weight, bias.as_ref())?)
    }

    pub(super) fn frozen_conv2d(&self, shape: &Conv2dShape) -> Result<FrozenConv2d> {
        let (weights, Convolution { inputs, outputs, kernel, stride, padding }) =
            (self.weights_of(&shape.path), shape.convolution);
        let weight = weights.get((outputs, inputs, kernel, kernel), "weight")?;
        let bias = weights.get(outputs, "bias")?;
        Ok(FrozenConv2d::new(&weight, Some(&bias), stride, padding)?)
    }

    pub(super) fn group_norm(&self, shape: &NormShape, groups: usize, eps: f64) -> Result<FrozenGroupNorm> {
        let [weight, bias] = self.norm(shape)?;
        Ok(FrozenGroupNorm::new(&weight, &bias, groups, eps)?)
    }

    pub(super) fn layer_norm(&self, shape: &NormShape, eps: f64) -> Result<FrozenLayerNorm> {
        let [weight, bias] = self.norm(shape)?;
        Ok(FrozenLayerNorm::new(&weight, &bias, eps)?)
    }

    fn norm(&self, shape: &NormShape) -> Result<[Tensor; 2]> {
        let weights = self.weights_of(&shape.path);
        Ok([weights.get(shape.width, "weight")?, weights.get(shape.width, "bias")?])
    }

    fn keep(&self, path: &str, layer: FrozenLayer) {
        self.frozen_layers.borrow_mut().0.insert(path.into(), layer);
    }

    pub(super) fn matrix(&self, shape: &MatrixShape) -> Result<Tensor> {
        self.weights_of(&shape.path).get((shape.rows, shape.columns), "weight")
    }

    /// Whether the layer at this module path has a weight.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.weights_of(path).contains("weight")
    }

    fn weights_of(&self, path: &str) -> Weights {
        let inside = path.strip_prefix(&self.root).and_then(|path| path.strip_prefix('.'));
        self.weights.at(inside.unwrap_or(path))
    }
}

/// A frozen linear layer and its module path.
#[derive(Debug)]
pub(super) struct LinearSlot {
    path: String,
    op: FrozenLinear,
}

impl LinearSlot {
    /// `x: [..., in]` to `[..., out]`, with the adapters' updates for this path.
    pub(super) fn forward(&self, x: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        adapters.linear(&self.path, x, &self.op, None)
    }

    /// The frozen layer, if no adapter changes it.
    pub(super) fn frozen(&self, adapters: &AdapterSet) -> Option<&FrozenLinear> {
        (!adapters.adapts(&self.path)).then_some(&self.op)
    }

    /// [`forward`](Self::forward) with a prologue and a residual: one node of the graph if no adapter needs the layer's
    /// input.
    pub(super) fn forward_fused(&self, x: &Tensor, fusion: Fusion<'_>, adapters: &AdapterSet) -> TensorResult<Tensor> {
        match self.frozen(adapters) {
            Some(layer) => layer.forward_fused(x, fusion),
            None => adapters.linear(&self.path, &fusion.apply_prologue(x)?, &self.op, fusion.residual),
        }
    }
}

/// A frozen convolution and its module path.
#[derive(Debug)]
pub(super) struct Conv2dSlot {
    path: String,
    op: FrozenConv2d,
}

impl Conv2dSlot {
    /// `x: [batch, in, height, width]`, with the adapters' updates for this path.
    pub(super) fn forward(&self, x: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        adapters.conv2d(&self.path, x, &self.op, None)
    }

    /// [`forward`](Self::forward) with `shift: [batch, out]`, a prologue and a residual: one node of the graph if no
    /// adapter needs the layer's input.
    pub(super) fn forward_fused(
        &self,
        x: &Tensor,
        shift: Option<&Tensor>,
        fusion: Fusion<'_>,
        adapters: &AdapterSet,
    ) -> TensorResult<Tensor> {
        if !adapters.adapts(&self.path) {
            return self.op.forward_fused(x, shift, fusion);
        }
        shifted(adapters.conv2d(&self.path, &fusion.apply_prologue(x)?, &self.op, fusion.residual)?, shift)
    }
}

/// The projection at either end of a transformer, between a map and tokens: a linear layer or a 1×1 convolution. The
/// two compute the same, but their weights have different shapes in adapters.
#[derive(Debug)]
pub(super) enum Projection {
    Linear(LinearSlot),
    Conv2d(Conv2dSlot),
}

impl Projection {
    /// `[batch, in, height, width]` to `[batch, height · width, out]`.
    pub(super) fn to_tokens(&self, map: &Tensor, fusion: Fusion<'_>, adapters: &AdapterSet) -> TensorResult<Tensor> {
        match self {
            Self::Linear(slot) if adapters.adapts(&slot.path) => {
                fusion.run(map, |map| slot.forward(&map_to_tokens(map)?, adapters))
            }
            Self::Conv2d(slot) if adapters.adapts(&slot.path) => {
                fusion.run(map, |map| map_to_tokens(&slot.forward(map, adapters)?))
            }
            Self::Linear(slot) => slot.op.map_to_tokens(map, fusion),
            Self::Conv2d(slot) => slot.op.map_to_tokens(map, fusion),
        }
    }

    /// `[batch, height · width, in]` to `[batch, out, height, width]`, with `size` as height and width.
    pub(super) fn to_map(
        &self,
        tokens: &Tensor,
        size: (usize, usize),
        fusion: Fusion<'_>,
        adapters: &AdapterSet,
    ) -> TensorResult<Tensor> {
        match self {
            Self::Linear(slot) if adapters.adapts(&slot.path) => {
                fusion.run(tokens, |tokens| tokens_to_map(&slot.forward(tokens, adapters)?, size))
            }
            Self::Conv2d(slot) if adapters.adapts(&slot.path) => {
                fusion.run(tokens, |tokens| slot.forward(&tokens_to_map(tokens, size)?, adapters))
            }
            Self::Linear(slot) => slot.op.tokens_to_map(tokens, size, fusion),
            Self::Conv2d(slot) => slot.op.tokens_to_map(tokens, size, fusion),
        }
    }
}
