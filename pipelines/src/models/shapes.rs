//! Layers by path and shape, without weights: all that a configuration file determines.
//!
//! A path begins with the component, as module paths do: `unet.conv_in`, `text_encoder.text_model.embeddings...`.

use catelier_adapters::{ModuleInfo, ModuleKind};

/// A linear layer: `weight` [out, in], and `bias` [out] if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinearShape {
    pub(crate) path: String,
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    pub(crate) bias: Bias,
}

/// Whether a layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    With,
    Without,
}

/// A convolution: `weight` [out, in, kernel, kernel] and `bias` [out].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conv2dShape {
    pub(crate) path: String,
    pub(crate) convolution: Convolution,
}

/// Sizes of a square convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Convolution {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

/// A normalisation with `weight` and `bias` [width].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NormShape {
    pub(crate) path: String,
    pub(crate) width: usize,
}

/// A matrix `weight` [rows, columns] that no adapter changes: an embedding table, or the projection of the pooled
/// prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MatrixShape {
    pub(crate) path: String,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// A tensor of a network: its name below the network's folder, and its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorShape {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

/// Any layer of a network.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LayerShape<'a> {
    Linear(&'a LinearShape),
    Conv2d(&'a Conv2dShape),
    Norm(&'a NormShape),
    Matrix(&'a MatrixShape),
}

impl LinearShape {
    /// The layer `name` below `path`.
    pub(crate) fn new(path: &str, name: &str, in_features: usize, out_features: usize, bias: Bias) -> Self {
        Self { path: format!("{path}.{name}"), in_features, out_features, bias }
    }

    pub(crate) fn module(&self) -> ModuleInfo {
        let Self { in_features, out_features, .. } = *self;
        ModuleInfo { path: self.path.clone(), kind: ModuleKind::Linear { in_features, out_features } }
    }
}

impl Conv2dShape {
    /// The layer `name` below `path`.
    pub(crate) fn new(path: &str, name: &str, convolution: Convolution) -> Self {
        Self { path: format!("{path}.{name}"), convolution }
    }

    pub(crate) fn module(&self) -> ModuleInfo {
        let Convolution { inputs, outputs, kernel, stride, padding } = self.convolution;
        let kind = ModuleKind::Conv2d { in_channels: inputs, out_channels: outputs, kernel, stride, padding };
        ModuleInfo { path: self.path.clone(), kind }
    }
}

impl Convolution {
    /// A convolution that keeps height and width: odd `kernel`, half of it as padding.
    pub(crate) fn same(inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self { inputs, outputs, kernel, stride: 1, padding: kernel / 2 }
    }
}

impl NormShape {
    /// The layer `name` below `path`.
    pub(crate) fn new(path: &str, name: &str, width: usize) -> Self {
        Self { path: format!("{path}.{name}"), width }
    }
}

impl MatrixShape {
    /// The layer `name` below `path`.
    pub(crate) fn new(path: &str, name: &str, rows: usize, columns: usize) -> Self {
        Self { path: format!("{path}.{name}"), rows, columns }
    }
}

impl LayerShape<'_> {
    /// The layer as a module for adapters; `None` for a layer that no adapter changes.
    pub(crate) fn module(&self) -> Option<ModuleInfo> {
        match self {
            Self::Linear(linear) => Some(linear.module()),
            Self::Conv2d(conv) => Some(conv.module()),
            Self::Norm(_) | Self::Matrix(_) => None,
        }
    }

    fn path(&self) -> &str {
        match self {
            Self::Linear(LinearShape { path, .. })
            | Self::Conv2d(Conv2dShape { path, .. })
            | Self::Norm(NormShape { path, .. })
            | Self::Matrix(MatrixShape { path, .. }) => path,
        }
    }

    /// Its weight, and its bias if it has one.
    fn tensors(&self) -> Vec<TensorShape> {
        let (weight, bias) = match *self {
            Self::Linear(LinearShape { in_features, out_features, bias, .. }) => {
                (vec![*out_features, *in_features], (*bias == Bias::With).then_some(*out_features))
            }
            Self::Conv2d(Conv2dShape { convolution, .. }) => {
                let Convolution { inputs, outputs, kernel, .. } = *convolution;
                (vec![outputs, inputs, kernel, kernel], Some(outputs))
            }
            Self::Norm(NormShape { width, .. }) => (vec![*width], Some(*width)),
            Self::Matrix(MatrixShape { rows, columns, .. }) => (vec![*rows, *columns], None),
        };
        // The path begins with the component, tensor names do not.
        let path = self.path();
        let inside = path.split_once('.').map_or(path, |(_, inside)| inside);
        let tensor = |(name, shape)| TensorShape { name: format!("{inside}.{name}"), shape };
        std::iter::once(("weight", weight)).chain(bias.map(|width| ("bias", vec![width]))).map(tensor).collect()
    }
}

/// The modules that an adapter can change, in the order of `layers`.
pub(crate) fn modules(layers: &[LayerShape<'_>]) -> Vec<ModuleInfo> {
    layers.iter().filter_map(LayerShape::module).collect()
}

/// All tensors of `layers`.
pub(crate) fn tensors(layers: &[LayerShape<'_>]) -> Vec<TensorShape> {
    layers.iter().flat_map(LayerShape::tensors).collect()
}
