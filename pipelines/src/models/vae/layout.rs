//! The structure of the autoencoder: its layers with their shapes.

use crate::models::config::VaeConfig;
use crate::models::files::Weights;
use crate::models::shapes::{self, Bias, Conv2dShape, Convolution, LayerShape, LinearShape, NormShape, TensorShape};

/// All layers of an autoencoder (`AutoencoderKL`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VaeLayout {
    pub(super) encoder: CoderLayout,
    pub(super) quant_conv: Option<Conv2dShape>,
    pub(super) post_quant_conv: Option<Conv2dShape>,
    pub(super) decoder: CoderLayout,
}

/// The encoder or the decoder. The encoder has its middle after the levels, the decoder before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CoderLayout {
    pub(super) conv_in: Conv2dShape,
    /// In the order of the forward pass.
    pub(super) levels: Vec<LevelLayout>,
    pub(super) middle: MiddleLayout,
    pub(super) norm_out: NormShape,
    pub(super) conv_out: Conv2dShape,
}

/// Residual blocks, followed by the convolution between two sizes of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LevelLayout {
    pub(super) blocks: Vec<ResidualLayout>,
    pub(super) resample: Option<Conv2dShape>,
}

/// Two residual blocks, and attention between them if the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MiddleLayout {
    pub(super) first: ResidualLayout,
    pub(super) attention: Option<AttentionLayout>,
    pub(super) last: ResidualLayout,
}

/// Two convolutions with a residual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResidualLayout {
    pub(super) norm1: NormShape,
    pub(super) conv1: Conv2dShape,
    pub(super) norm2: NormShape,
    pub(super) conv2: Conv2dShape,
    pub(super) conv_shortcut: Option<Conv2dShape>,
}

/// Attention with one head over all cells of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AttentionLayout {
    pub(super) path: String,
    pub(super) group_norm: NormShape,
    pub(super) to_q: LinearShape,
    pub(super) to_k: LinearShape,
    pub(super) to_v: LinearShape,
    pub(super) to_out: LinearShape,
}

/// The projections of an attention, today and before diffusers 0.18.
pub(crate) const LEGACY_NAMES: [(&str, &str); 4] = [
    (".attentions.0.to_q.", ".attentions.0.query."),
    (".attentions.0.to_k.", ".attentions.0.key."),
    (".attentions.0.to_v.", ".attentions.0.value."),
    (".attentions.0.to_out.0.", ".attentions.0.proj_attn."),
];

/// First part of the autoencoder's module paths.
pub(super) const ROOT: &str = "vae";

impl VaeLayout {
    /// The structure for `config`.
    pub(crate) fn new(config: &VaeConfig) -> Self {
        let mixing = |name: &str, channels| Conv2dShape::new(ROOT, name, Convolution::same(channels, channels, 1));
        let latent = config.latent_channels;
        Self {
            encoder: encoder(config),
            quant_conv: config.use_quant_conv.then(|| mixing("quant_conv", 2 * latent)),
            post_quant_conv: config.use_post_quant_conv.then(|| mixing("post_quant_conv", latent)),
            decoder: decoder(config),
        }
    }

    /// All tensors.
    pub(crate) fn tensors(&self) -> Vec<TensorShape> {
        shapes::tensors(&self.layers())
    }

    /// All tensors under the names that `weights` has: files saved before diffusers 0.18 use the names of the original
    /// code in attentions.
    pub(crate) fn tensors_in(&self, weights: &Weights) -> Vec<TensorShape> {
        let stored = |tensor: TensorShape| {
            let legacy = LEGACY_NAMES.iter().fold(tensor.name.clone(), |name, (new, old)| name.replace(new, old));
            if weights.contains(&legacy) { TensorShape { name: legacy, ..tensor } } else { tensor }
        };
        self.tensors().into_iter().map(stored).collect()
    }

    fn layers(&self) -> Vec<LayerShape<'_>> {
        let mixing = self.quant_conv.iter().chain(&self.post_quant_conv).map(LayerShape::Conv2d);
        [&self.encoder, &self.decoder].into_iter().flat_map(CoderLayout::layers).chain(mixing).collect()
    }
}

fn encoder(config: &VaeConfig) -> CoderLayout {
    let (path, channels) = (format!("{ROOT}.encoder"), &config.block_out_channels);
    let (first, last) = (channels[0], channels[channels.len() - 1]);
    let halve = |width| Convolution { stride: 2, padding: 0, ..Convolution::same(width, width, 3) };
    let level = |index| format!("{path}.down_blocks.{index}");
    CoderLayout {
        conv_in: Conv2dShape::new(&path, "conv_in", Convolution::same(config.in_channels, first, 3)),
        levels: levels(channels, config.layers_per_block, &level, ("downsamplers.0.conv", &halve)),
        middle: MiddleLayout::new(&path, config, last),
        norm_out: NormShape::new(&path, "conv_norm_out", last),
        conv_out: Conv2dShape::new(&path, "conv_out", Convolution::same(last, 2 * config.latent_channels, 3)),
    }
}

fn decoder(config: &VaeConfig) -> CoderLayout {
    let path = format!("{ROOT}.decoder");
    let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    let (first, last) = (channels[0], channels[channels.len() - 1]);
    let double = |width| Convolution::same(width, width, 3);
    let level = |index| format!("{path}.up_blocks.{index}");
    CoderLayout {
        conv_in: Conv2dShape::new(&path, "conv_in", Convolution::same(config.latent_channels, first, 3)),
        levels: levels(&channels, config.layers_per_block + 1, &level, ("upsamplers.0.conv", &double)),
        middle: MiddleLayout::new(&path, config, first),
        norm_out: NormShape::new(&path, "conv_norm_out", last),
        conv_out: Conv2dShape::new(&path, "conv_out", Convolution::same(last, config.out_channels, 3)),
    }
}

/// Levels with these `channels` and `blocks` residual blocks each, at the paths from `path_of`; a convolution follows
/// every level but the last.
fn levels(
    channels: &[usize],
    blocks: usize,
    path_of: &dyn Fn(usize) -> String,
    (name, convolution): (&str, &dyn Fn(usize) -> Convolution),
) -> Vec<LevelLayout> {
    let level = |(index, &width): (usize, &usize)| {
        let path = path_of(index);
        let inputs = channels[index.saturating_sub(1)];
        let resample = || Conv2dShape::new(&path, name, convolution(width));
        LevelLayout {
            blocks: residual_blocks(&path, blocks, inputs, width),
            resample: (index + 1 < channels.len()).then(resample),
        }
    };
    channels.iter().enumerate().map(level).collect()
}

fn residual_blocks(path: &str, count: usize, inputs: usize, width: usize) -> Vec<ResidualLayout> {
    let block = |index| {
        let inputs = if index == 0 { inputs } else { width };
        ResidualLayout::new(&format!("{path}.resnets.{index}"), inputs, width)
    };
    (0..count).map(block).collect()
}

impl CoderLayout {
    fn layers(&self) -> Vec<LayerShape<'_>> {
        let mut layers = vec![LayerShape::Conv2d(&self.conv_in)];
        for level in &self.levels {
            layers.extend(level.blocks.iter().flat_map(ResidualLayout::layers));
            layers.extend(level.resample.as_ref().map(LayerShape::Conv2d));
        }
        layers.extend([&self.middle.first, &self.middle.last].into_iter().flat_map(ResidualLayout::layers));
        layers.extend(self.middle.attention.iter().flat_map(AttentionLayout::layers));
        layers.extend([LayerShape::Norm(&self.norm_out), LayerShape::Conv2d(&self.conv_out)]);
        layers
    }
}

impl MiddleLayout {
    fn new(path: &str, config: &VaeConfig, width: usize) -> Self {
        let block = |name: &str| ResidualLayout::new(&format!("{path}.mid_block.{name}"), width, width);
        let attention = || AttentionLayout::new(format!("{path}.mid_block.attentions.0"), width);
        Self {
            first: block("resnets.0"),
            attention: config.mid_block_add_attention.then(attention),
            last: block("resnets.1"),
        }
    }
}

impl ResidualLayout {
    fn new(path: &str, inputs: usize, outputs: usize) -> Self {
        let conv =
            |name: &str, inputs, kernel| Conv2dShape::new(path, name, Convolution::same(inputs, outputs, kernel));
        Self {
            norm1: NormShape::new(path, "norm1", inputs),
            conv1: conv("conv1", inputs, 3),
            norm2: NormShape::new(path, "norm2", outputs),
            conv2: conv("conv2", outputs, 3),
            conv_shortcut: (inputs != outputs).then(|| conv("conv_shortcut", inputs, 1)),
        }
    }

    fn layers(&self) -> Vec<LayerShape<'_>> {
        use LayerShape::{Conv2d, Norm};
        let layers = [Norm(&self.norm1), Conv2d(&self.conv1), Norm(&self.norm2), Conv2d(&self.conv2)];
        layers.into_iter().chain(self.conv_shortcut.as_ref().map(Conv2d)).collect()
    }
}

impl AttentionLayout {
    fn new(path: String, width: usize) -> Self {
        let linear = |name: &str| LinearShape::new(&path, name, width, width, Bias::With);
        Self {
            group_norm: NormShape::new(&path, "group_norm", width),
            to_q: linear("to_q"),
            to_k: linear("to_k"),
            to_v: linear("to_v"),
            to_out: linear("to_out.0"),
            path,
        }
    }

    fn layers(&self) -> Vec<LayerShape<'_>> {
        let projections = [&self.to_q, &self.to_k, &self.to_v, &self.to_out].map(LayerShape::Linear);
        std::iter::once(LayerShape::Norm(&self.group_norm)).chain(projections).collect()
    }
}
