//! Frozen layers that adapters can change: each is a slot with a module path.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::{AdapterSet, ModuleInfo, ModuleKind};
use catelier_numerics::ops::{
    FrozenConv2d, FrozenGroupNorm, FrozenLayerNorm, FrozenLinear, Fusion, map_to_tokens, shifted, tokens_to_map,
};

use crate::error::Result;
use crate::files::Weights;

/// A place in a network's module tree while the network is built: its weights, its path, and the slots met so far.
#[derive(Clone)]
pub(super) struct Place {
    weights: Weights,
    path: String,
    modules: Rc<RefCell<Vec<ModuleInfo>>>,
    frozen_layers: Rc<RefCell<FrozenLayers>>,
}

/// The frozen layers of a network by module path; their weights are those of the slots.
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

/// Whether a layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    With,
    Without,
}

/// The shape of a square convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Convolution {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
}

impl Convolution {
    /// A convolution that keeps the sides: odd `kernel`, half of it as padding.
    pub(super) fn same(inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self { inputs, outputs, kernel, stride: 1, padding: kernel / 2 }
    }
}

impl Place {
    /// The root of a network; module paths begin with `path` whatever the prefix of the tensor names.
    pub(super) fn root(path: &str, weights: Weights) -> Self {
        Self { weights, path: path.into(), modules: Rc::default(), frozen_layers: Rc::default() }
    }

    pub(super) fn at(&self, name: &str) -> Self {
        Self { weights: self.weights.at(name), path: format!("{}.{name}", self.path), ..self.clone() }
    }

    /// Child `index` of the list `name`, as in `resnets.0`.
    pub(super) fn nth(&self, name: &str, index: usize) -> Self {
        self.at(&format!("{name}.{index}"))
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// All slots made so far, in the order they were made.
    pub(super) fn modules(&self) -> Vec<ModuleInfo> {
        self.modules.borrow().clone()
    }

    /// The layers of all slots made so far.
    pub(super) fn frozen_layers(&self) -> FrozenLayers {
        self.frozen_layers.borrow().clone()
    }

    pub(super) fn linear(&self, name: &str, inputs: usize, outputs: usize, bias: Bias) -> Result<LinearSlot> {
        let place = self.at(name);
        place.note(ModuleKind::Linear { in_features: inputs, out_features: outputs });
        let op = frozen_linear(&place.weights, inputs, outputs, bias)?;
        place.keep(FrozenLayer::Linear(op.clone()));
        Ok(LinearSlot { op, path: place.path })
    }

    pub(super) fn conv2d(&self, name: &str, shape: Convolution) -> Result<Conv2dSlot> {
        let place = self.at(name);
        place.note(ModuleKind::Conv2d {
            in_channels: shape.inputs,
            out_channels: shape.outputs,
            kernel: shape.kernel,
            stride: shape.stride,
            padding: shape.padding,
        });
        let op = frozen_conv2d(&place.weights, shape)?;
        place.keep(FrozenLayer::Conv2d(op.clone()));
        Ok(Conv2dSlot { op, path: place.path })
    }

    pub(super) fn group_norm(&self, name: &str, channels: usize, groups: usize, eps: f64) -> Result<FrozenGroupNorm> {
        frozen_group_norm(&self.weights.at(name), channels, groups, eps)
    }

    pub(super) fn layer_norm(&self, name: &str, width: usize, eps: f64) -> Result<FrozenLayerNorm> {
        let weights = self.weights.at(name);
        let (weight, bias) = (weights.get(width, "weight")?, weights.get(width, "bias")?);
        Ok(FrozenLayerNorm::new(&weight, &bias, eps)?)
    }

    fn keep(&self, layer: FrozenLayer) {
        self.frozen_layers.borrow_mut().0.insert(self.path.clone(), layer);
    }

    fn note(&self, kind: ModuleKind) {
        self.modules.borrow_mut().push(ModuleInfo { path: self.path.clone(), kind });
    }
}

/// A frozen linear layer from the tensors `weight` and, if it has one, `bias`.
pub(super) fn frozen_linear(weights: &Weights, inputs: usize, outputs: usize, bias: Bias) -> Result<FrozenLinear> {
    let weight = weights.get((outputs, inputs), "weight")?;
    let bias = match bias {
        Bias::With => Some(weights.get(outputs, "bias")?),
        Bias::Without => None,
    };
    Ok(FrozenLinear::new(&weight, bias.as_ref())?)
}

/// A frozen convolution from the tensors `weight` and `bias`.
pub(super) fn frozen_conv2d(weights: &Weights, shape: Convolution) -> Result<FrozenConv2d> {
    let weight = weights.get((shape.outputs, shape.inputs, shape.kernel, shape.kernel), "weight")?;
    let bias = weights.get(shape.outputs, "bias")?;
    Ok(FrozenConv2d::new(&weight, Some(&bias), shape.stride, shape.padding)?)
}

/// A frozen group normalisation from the tensors `weight` and `bias`.
pub(super) fn frozen_group_norm(
    weights: &Weights,
    channels: usize,
    groups: usize,
    eps: f64,
) -> Result<FrozenGroupNorm> {
    let (weight, bias) = (weights.get(channels, "weight")?, weights.get(channels, "bias")?);
    Ok(FrozenGroupNorm::new(&weight, &bias, groups, eps)?)
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

    /// The layer itself, if no adapter changes it.
    pub(super) fn frozen(&self, adapters: &AdapterSet) -> Option<&FrozenLinear> {
        (!adapters.adapts(&self.path)).then_some(&self.op)
    }

    /// The same with a prologue and a residual, in one node where no adapter needs the layer's input.
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

    /// The same with `shift: [batch, out]`, a prologue and a residual, in one node where no adapter needs the layer's
    /// input.
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

/// The projection at either end of a transformer, between a map and tokens: a linear layer or a 1×1 convolution, which
/// adapters tell apart.
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

    /// `[batch, height · width, in]` to `[batch, out, height, width]` of that `size`.
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
