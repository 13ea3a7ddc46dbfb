//! The structure of the UNet: its blocks and layers with their shapes, in the order of the forward pass.
//!
//! [`UNet::load`](super::UNet::load) loads weights into it and [`Footprint`](crate::training::plan::Footprint) counts
//! activations along it, so the structure is written down only here.

use catelier_adapters::ModuleInfo;

use crate::models::config::{UNetConfig, UNetLevel};
use crate::models::shapes::{self, Bias, Conv2dShape, Convolution, LayerShape, LinearShape, NormShape, TensorShape};

/// All blocks of a UNet (`UNet2DConditionModel`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UNetLayout {
    pub(crate) time_embedding: MlpLayout,
    /// SDXL's `add_embedding`.
    pub(crate) added_embedding: Option<MlpLayout>,
    pub(crate) conv_in: Conv2dShape,
    /// From the finest level to the coarsest.
    pub(crate) down: Vec<LevelLayout>,
    pub(crate) middle: LevelLayout,
    /// From the coarsest level to the finest.
    pub(crate) up: Vec<LevelLayout>,
    pub(crate) norm_out: NormShape,
    pub(crate) conv_out: Conv2dShape,
}

/// Two linear layers with SiLU between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MlpLayout {
    pub(crate) linear_1: LinearShape,
    pub(crate) linear_2: LinearShape,
}

/// Layers over maps of one size, followed by the convolution to the next size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LevelLayout {
    /// How many times the sides of the latents have been halved.
    pub(crate) halvings: usize,
    pub(crate) layers: Vec<LayerLayout>,
    /// On the way down, the strided convolution to the next level; on the way up, the convolution after
    /// nearest-neighbour upsampling.
    pub(crate) resample: Option<Conv2dShape>,
}

/// A residual block, followed by attention if the level has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerLayout {
    pub(crate) resnet: ResnetLayout,
    pub(crate) attention: Option<TransformerLayout>,
}

/// Two convolutions with the time embedding added between them, and a residual (`ResnetBlock2D`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResnetLayout {
    pub(crate) path: String,
    /// Input channels, on the way up including those of the skip connection.
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) norm1: NormShape,
    pub(crate) conv1: Conv2dShape,
    pub(crate) time_emb_proj: LinearShape,
    pub(crate) norm2: NormShape,
    pub(crate) conv2: Conv2dShape,
    pub(crate) conv_shortcut: Option<Conv2dShape>,
}

/// Transformer blocks over a feature map (`Transformer2DModel`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransformerLayout {
    pub(crate) channels: usize,
    pub(crate) norm: NormShape,
    pub(crate) proj_in: ProjectionShape,
    pub(crate) blocks: Vec<TransformerBlockLayout>,
    pub(crate) proj_out: ProjectionShape,
}

/// The projection at either end of a transformer: a linear layer (SD 2, SDXL) or a 1x1 convolution (SD 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProjectionShape {
    Linear(LinearShape),
    Conv2d(Conv2dShape),
}

/// Self-attention, cross-attention and a feed-forward layer (`BasicTransformerBlock`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransformerBlockLayout {
    pub(crate) path: String,
    pub(crate) width: usize,
    /// Width of the text context.
    pub(crate) context_width: usize,
    pub(crate) heads: usize,
    pub(crate) norm1: NormShape,
    pub(crate) attn1: AttentionLayout,
    pub(crate) norm2: NormShape,
    pub(crate) attn2: AttentionLayout,
    pub(crate) norm3: NormShape,
    pub(crate) feed_forward: FeedForwardLayout,
}

/// The four projections of multi-head attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AttentionLayout {
    pub(crate) to_q: LinearShape,
    pub(crate) to_k: LinearShape,
    pub(crate) to_v: LinearShape,
    pub(crate) to_out: LinearShape,
}

/// A gated feed-forward layer: values and gates, four times the width each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FeedForwardLayout {
    pub(crate) path: String,
    pub(crate) widen: LinearShape,
    pub(crate) narrow: LinearShape,
}

impl UNetLayout {
    /// The structure for `config`.
    pub(crate) fn new(config: &UNetConfig) -> Self {
        let (first, time) = (config.levels[0].channels, config.timestep.width);
        let conv = |name: &str, inputs, outputs, kernel| {
            Conv2dShape::new("unet", name, Convolution::same(inputs, outputs, kernel))
        };
        Self {
            time_embedding: MlpLayout::new("unet.time_embedding", first, time),
            added_embedding: config
                .added
                .as_ref()
                .map(|added| MlpLayout::new("unet.add_embedding", added.input_width, time)),
            conv_in: conv("conv_in", config.in_channels, first, config.conv_in_kernel),
            down: down_levels(config),
            middle: middle_level(config),
            up: up_levels(config),
            norm_out: NormShape::new("unet", "conv_norm_out", first),
            conv_out: conv("conv_out", first, config.out_channels, config.conv_out_kernel),
        }
    }

    /// All layers, in the order of the forward pass.
    fn layers(&self) -> Vec<LayerShape<'_>> {
        let mut layers = self.time_embedding.layers().to_vec();
        layers.extend(self.added_embedding.iter().flat_map(MlpLayout::layers));
        layers.push(LayerShape::Conv2d(&self.conv_in));
        for level in self.down.iter().chain([&self.middle]).chain(&self.up) {
            layers.extend(level.layers.iter().flat_map(LayerLayout::layers));
            layers.extend(level.resample.as_ref().map(LayerShape::Conv2d));
        }
        layers.extend([LayerShape::Norm(&self.norm_out), LayerShape::Conv2d(&self.conv_out)]);
        layers
    }

    /// Every linear layer and convolution that an adapter can change, in the order of the forward pass.
    pub(crate) fn modules(&self) -> Vec<ModuleInfo> {
        shapes::modules(&self.layers())
    }

    /// All tensors.
    pub(crate) fn tensors(&self) -> Vec<TensorShape> {
        shapes::tensors(&self.layers())
    }
}

fn down_levels(config: &UNetConfig) -> Vec<LevelLayout> {
    let mut inputs = config.levels[0].channels;
    let mut levels = Vec::with_capacity(config.levels.len());
    for (index, level) in config.levels.iter().enumerate() {
        let path = format!("unet.down_blocks.{index}");
        let layer = |layer| {
            let inputs = if layer == 0 { inputs } else { level.channels };
            LayerLayout::new(&path, layer, config, level, inputs, level.attention)
        };
        let halve = Convolution { stride: 2, ..Convolution::same(level.channels, level.channels, 3) };
        let resample = || Conv2dShape::new(&path, "downsamplers.0.conv", halve);
        levels.push(LevelLayout {
            halvings: index,
            layers: (0..level.layers).map(layer).collect(),
            resample: (index + 1 < config.levels.len()).then(resample),
        });
        inputs = level.channels;
    }
    levels
}

/// Attention between two residual blocks (`UNetMidBlock2DCrossAttn`).
fn middle_level(config: &UNetConfig) -> LevelLayout {
    let coarsest = config.levels.len() - 1;
    let level = &config.levels[coarsest];
    let layer = |index, attention| LayerLayout::new("unet.mid_block", index, config, level, level.channels, attention);
    LevelLayout { halvings: coarsest, layers: vec![layer(0, true), layer(1, false)], resample: None }
}

fn up_levels(config: &UNetConfig) -> Vec<LevelLayout> {
    let coarsest = config.levels.len() - 1;
    let mut skips = skip_channels(config);
    let mut inputs = config.levels[coarsest].channels;
    let mut levels = Vec::with_capacity(config.levels.len());
    for (index, level) in config.levels.iter().rev().enumerate() {
        let path = format!("unet.up_blocks.{index}");
        let mut layers = Vec::with_capacity(level.layers + 1);
        for layer in 0..=level.layers {
            let inputs_with_skip = inputs + skips.pop().unwrap_or(0);
            layers.push(LayerLayout::new(&path, layer, config, level, inputs_with_skip, config.up_attention[index]));
            inputs = level.channels;
        }
        let same = Convolution::same(level.channels, level.channels, 3);
        let resample = || Conv2dShape::new(&path, "upsamplers.0.conv", same);
        levels.push(LevelLayout { halvings: coarsest - index, layers, resample: (index < coarsest).then(resample) });
    }
    levels
}

/// Channels of the skip connections in the order of the way down: the first convolution, then level by level.
fn skip_channels(config: &UNetConfig) -> Vec<usize> {
    let coarsest = config.levels.len() - 1;
    let mut skips = vec![config.levels[0].channels];
    for (index, level) in config.levels.iter().enumerate() {
        let halving = usize::from(index < coarsest);
        skips.extend(vec![level.channels; level.layers + halving]);
    }
    skips
}

impl MlpLayout {
    fn new(path: &str, inputs: usize, width: usize) -> Self {
        Self {
            linear_1: LinearShape::new(path, "linear_1", inputs, width, Bias::With),
            linear_2: LinearShape::new(path, "linear_2", width, width, Bias::With),
        }
    }

    fn layers(&self) -> [LayerShape<'_>; 2] {
        [LayerShape::Linear(&self.linear_1), LayerShape::Linear(&self.linear_2)]
    }
}

impl LayerLayout {
    /// Layer `index` of a level: `resnets.{index}`, and `attentions.{index}` if the level has attention.
    fn new(
        path: &str,
        index: usize,
        config: &UNetConfig,
        level: &UNetLevel,
        inputs: usize,
        with_attention: bool,
    ) -> Self {
        let attention = || TransformerLayout::new(&format!("{path}.attentions.{index}"), config, level);
        let time_width = config.timestep.width;
        Self {
            resnet: ResnetLayout::new(format!("{path}.resnets.{index}"), time_width, inputs, level.channels),
            attention: with_attention.then(attention),
        }
    }

    fn layers(&self) -> Vec<LayerShape<'_>> {
        let attention = self.attention.iter().flat_map(TransformerLayout::layers);
        self.resnet.layers().into_iter().chain(attention).collect()
    }
}

impl ResnetLayout {
    fn new(path: String, time_width: usize, inputs: usize, outputs: usize) -> Self {
        let conv =
            |name: &str, inputs, kernel| Conv2dShape::new(&path, name, Convolution::same(inputs, outputs, kernel));
        Self {
            norm1: NormShape::new(&path, "norm1", inputs),
            conv1: conv("conv1", inputs, 3),
            time_emb_proj: LinearShape::new(&path, "time_emb_proj", time_width, outputs, Bias::With),
            norm2: NormShape::new(&path, "norm2", outputs),
            conv2: conv("conv2", outputs, 3),
            conv_shortcut: (inputs != outputs).then(|| conv("conv_shortcut", inputs, 1)),
            inputs,
            outputs,
            path,
        }
    }

    fn layers(&self) -> Vec<LayerShape<'_>> {
        use LayerShape::{Conv2d, Linear, Norm};
        let Self { norm1, conv1, time_emb_proj, norm2, conv2, .. } = self;
        let layers = [Norm(norm1), Conv2d(conv1), Linear(time_emb_proj), Norm(norm2), Conv2d(conv2)];
        layers.into_iter().chain(self.conv_shortcut.as_ref().map(Conv2d)).collect()
    }
}

impl TransformerLayout {
    fn new(path: &str, config: &UNetConfig, level: &UNetLevel) -> Self {
        let channels = level.channels;
        let projection = |name: &str| match config.linear_projection {
            true => ProjectionShape::Linear(LinearShape::new(path, name, channels, channels, Bias::With)),
            false => ProjectionShape::Conv2d(Conv2dShape::new(path, name, Convolution::same(channels, channels, 1))),
        };
        let block = |index| TransformerBlockLayout::new(format!("{path}.transformer_blocks.{index}"), level);
        Self {
            channels,
            norm: NormShape::new(path, "norm", channels),
            proj_in: projection("proj_in"),
            blocks: (0..level.transformer_layers).map(block).collect(),
            proj_out: projection("proj_out"),
        }
    }

    fn layers(&self) -> Vec<LayerShape<'_>> {
        let mut layers = vec![LayerShape::Norm(&self.norm), self.proj_in.layer()];
        layers.extend(self.blocks.iter().flat_map(TransformerBlockLayout::layers));
        layers.push(self.proj_out.layer());
        layers
    }
}

impl ProjectionShape {
    fn layer(&self) -> LayerShape<'_> {
        match self {
            Self::Linear(linear) => LayerShape::Linear(linear),
            Self::Conv2d(conv) => LayerShape::Conv2d(conv),
        }
    }
}

impl TransformerBlockLayout {
    fn new(path: String, level: &UNetLevel) -> Self {
        let &UNetLevel { channels: width, context_width, heads, .. } = level;
        let norm = |name: &str| NormShape::new(&path, name, width);
        Self {
            norm1: norm("norm1"),
            attn1: AttentionLayout::new(&format!("{path}.attn1"), width, width),
            norm2: norm("norm2"),
            attn2: AttentionLayout::new(&format!("{path}.attn2"), width, context_width),
            norm3: norm("norm3"),
            feed_forward: FeedForwardLayout::new(format!("{path}.ff"), width),
            width,
            context_width,
            heads,
            path,
        }
    }

    fn layers(&self) -> Vec<LayerShape<'_>> {
        let mut layers = vec![LayerShape::Norm(&self.norm1)];
        layers.extend(self.attn1.projections().map(LayerShape::Linear));
        layers.push(LayerShape::Norm(&self.norm2));
        layers.extend(self.attn2.projections().map(LayerShape::Linear));
        layers.push(LayerShape::Norm(&self.norm3));
        layers.extend([&self.feed_forward.widen, &self.feed_forward.narrow].map(LayerShape::Linear));
        layers
    }
}

impl AttentionLayout {
    fn new(path: &str, width: usize, context_width: usize) -> Self {
        let projection = |name: &str, inputs, bias| LinearShape::new(path, name, inputs, width, bias);
        Self {
            to_q: projection("to_q", width, Bias::Without),
            to_k: projection("to_k", context_width, Bias::Without),
            to_v: projection("to_v", context_width, Bias::Without),
            to_out: projection("to_out.0", width, Bias::With),
        }
    }

    pub(crate) fn projections(&self) -> [&LinearShape; 4] {
        [&self.to_q, &self.to_k, &self.to_v, &self.to_out]
    }
}

impl FeedForwardLayout {
    fn new(path: String, width: usize) -> Self {
        let inner = 4 * width;
        Self {
            widen: LinearShape::new(&path, "net.0.proj", width, 2 * inner, Bias::With),
            narrow: LinearShape::new(&path, "net.2", inner, width, Bias::With),
            path,
        }
    }
}
