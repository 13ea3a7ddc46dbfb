//! The two halves of the autoencoder and what they are made of.

use candle_core::{Result as TensorResult, Tensor};
use catelier_numerics::ops::{AttentionMask, FrozenConv2d, FrozenGroupNorm, FrozenLinear, attention, upsample_nearest};

use crate::error::Result;
use crate::files::Weights;
use crate::model::config::VaeConfig;
use crate::model::shapes::{Bias, Convolution};
use crate::model::slots::{frozen_conv2d, frozen_group_norm, frozen_linear};

/// Epsilon of every group normalisation in the autoencoder.
const NORM_EPS: f64 = 1e-6;

/// From a picture to the moments of its latents.
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: FrozenConv2d,
    levels: Vec<Level<HalveSides>>,
    middle: Middle,
    out: Output,
}

impl Encoder {
    pub(super) fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let conv_in = Convolution::same(config.in_channels, first, 3);
        let mut inputs = first;
        let mut levels = Vec::with_capacity(channels.len());
        for (index, &width) in channels.iter().enumerate() {
            let place = weights.at(&format!("down_blocks.{index}"));
            let halve = || HalveSides::load(&place.at("downsamplers.0.conv"), width);
            let resize = (index + 1 < channels.len()).then(halve).transpose()?;
            let blocks = load_blocks(&place, config, config.layers_per_block, inputs, width)?;
            levels.push(Level { blocks, resize });
            inputs = width;
        }
        Ok(Self {
            conv_in: frozen_conv2d(&weights.at("conv_in"), conv_in)?,
            levels,
            middle: Middle::load(&weights.at("mid_block"), config, last)?,
            out: Output::load(weights, config, last, 2 * config.latent_channels)?,
        })
    }

    pub(super) fn forward(&self, image: &Tensor) -> TensorResult<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for level in &self.levels {
            x = level.forward(&x)?;
        }
        self.out.forward(&self.middle.forward(&x)?)
    }
}

/// From latents to a picture.
#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: FrozenConv2d,
    middle: Middle,
    levels: Vec<Level<DoubleSides>>,
    out: Output,
}

impl Decoder {
    pub(super) fn load(weights: &Weights, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut inputs = last;
        let mut levels = Vec::with_capacity(channels.len());
        for (index, &width) in channels.iter().rev().enumerate() {
            let place = weights.at(&format!("up_blocks.{index}"));
            let double = || DoubleSides::load(&place.at("upsamplers.0.conv"), width);
            let resize = (index + 1 < channels.len()).then(double).transpose()?;
            let blocks = load_blocks(&place, config, config.layers_per_block + 1, inputs, width)?;
            levels.push(Level { blocks, resize });
            inputs = width;
        }
        Ok(Self {
            conv_in: frozen_conv2d(&weights.at("conv_in"), Convolution::same(config.latent_channels, last, 3))?,
            middle: Middle::load(&weights.at("mid_block"), config, last)?,
            levels,
            out: Output::load(weights, config, first, config.out_channels)?,
        })
    }

    pub(super) fn forward(&self, latents: &Tensor) -> TensorResult<Tensor> {
        let mut x = self.middle.forward(&self.conv_in.forward(latents)?)?;
        for level in &self.levels {
            x = level.forward(&x)?;
        }
        self.out.forward(&x)
    }
}

/// Residual blocks, then a change of the sides in all levels but the last.
#[derive(Debug)]
struct Level<R> {
    blocks: Vec<ResidualBlock>,
    resize: Option<R>,
}

impl<R: Resize> Level<R> {
    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let mut x = x.clone();
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.resize.as_ref().map_or(Ok(x.clone()), |resize| resize.forward(&x))
    }
}

fn load_blocks(
    place: &Weights,
    config: &VaeConfig,
    count: usize,
    inputs: usize,
    width: usize,
) -> Result<Vec<ResidualBlock>> {
    (0..count)
        .map(|index| {
            let inputs = if index == 0 { inputs } else { width };
            ResidualBlock::load(&place.at(&format!("resnets.{index}")), config, inputs, width)
        })
        .collect()
}

/// A change of the sides between two levels.
trait Resize {
    fn forward(&self, x: &Tensor) -> TensorResult<Tensor>;
}

/// Halves the sides: a strided convolution over a map padded at the right and the bottom only.
#[derive(Debug)]
struct HalveSides(FrozenConv2d);

impl HalveSides {
    fn load(weights: &Weights, width: usize) -> Result<Self> {
        let shape = Convolution { stride: 2, padding: 0, ..Convolution::same(width, width, 3) };
        Ok(Self(frozen_conv2d(weights, shape)?))
    }
}

impl Resize for HalveSides {
    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        self.0.forward(&x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?)
    }
}

/// Doubles the sides, then convolves.
#[derive(Debug)]
struct DoubleSides(FrozenConv2d);

impl DoubleSides {
    fn load(weights: &Weights, width: usize) -> Result<Self> {
        Ok(Self(frozen_conv2d(weights, Convolution::same(width, width, 3))?))
    }
}

impl Resize for DoubleSides {
    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        self.0.forward(&upsample_nearest(x, (2 * height, 2 * width))?)
    }
}

/// Residual block, attention where there is any, residual block.
#[derive(Debug)]
struct Middle {
    first: ResidualBlock,
    attention: Option<SelfAttention>,
    last: ResidualBlock,
}

impl Middle {
    fn load(weights: &Weights, config: &VaeConfig, width: usize) -> Result<Self> {
        let attention = || SelfAttention::load(&weights.at("attentions.0"), config, width);
        Ok(Self {
            first: ResidualBlock::load(&weights.at("resnets.0"), config, width, width)?,
            attention: config.mid_block_add_attention.then(attention).transpose()?,
            last: ResidualBlock::load(&weights.at("resnets.1"), config, width, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let mut x = self.first.forward(x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.last.forward(&x)
    }
}

/// Normalisation, activation and the last convolution of either half.
#[derive(Debug)]
struct Output {
    norm: FrozenGroupNorm,
    conv: FrozenConv2d,
}

impl Output {
    fn load(weights: &Weights, config: &VaeConfig, inputs: usize, outputs: usize) -> Result<Self> {
        let norm = frozen_group_norm(&weights.at("conv_norm_out"), inputs, config.norm_num_groups, NORM_EPS)?;
        let conv = frozen_conv2d(&weights.at("conv_out"), Convolution::same(inputs, outputs, 3))?;
        Ok(Self { norm, conv })
    }

    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        self.conv.forward(&self.norm.forward_silu(x)?)
    }
}

/// Two convolutions with a residual.
#[derive(Debug)]
struct ResidualBlock {
    norm1: FrozenGroupNorm,
    conv1: FrozenConv2d,
    norm2: FrozenGroupNorm,
    conv2: FrozenConv2d,
    conv_shortcut: Option<FrozenConv2d>,
}

impl ResidualBlock {
    fn load(weights: &Weights, config: &VaeConfig, inputs: usize, outputs: usize) -> Result<Self> {
        let groups = config.norm_num_groups;
        let shortcut = || frozen_conv2d(&weights.at("conv_shortcut"), Convolution::same(inputs, outputs, 1));
        Ok(Self {
            norm1: frozen_group_norm(&weights.at("norm1"), inputs, groups, NORM_EPS)?,
            conv1: frozen_conv2d(&weights.at("conv1"), Convolution::same(inputs, outputs, 3))?,
            norm2: frozen_group_norm(&weights.at("norm2"), outputs, groups, NORM_EPS)?,
            conv2: frozen_conv2d(&weights.at("conv2"), Convolution::same(outputs, outputs, 3))?,
            conv_shortcut: (inputs != outputs).then(shortcut).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let hidden = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        let hidden = self.conv2.forward(&self.norm2.forward_silu(&hidden)?)?;
        match &self.conv_shortcut {
            Some(conv) => conv.forward(x)? + hidden,
            None => x + hidden,
        }
    }
}

/// One head of attention over all cells of the map, with a residual.
#[derive(Debug)]
struct SelfAttention {
    group_norm: FrozenGroupNorm,
    query: FrozenLinear,
    key: FrozenLinear,
    value: FrozenLinear,
    out: FrozenLinear,
}

impl SelfAttention {
    fn load(weights: &Weights, config: &VaeConfig, width: usize) -> Result<Self> {
        // Files saved before diffusers 0.18 have the names of the original code.
        let legacy = weights.contains("query.weight");
        let projection = |name: &str, legacy_name: &str| {
            let place = weights.at(if legacy { legacy_name } else { name });
            frozen_linear(&place, width, width, Bias::With)
        };
        Ok(Self {
            group_norm: frozen_group_norm(&weights.at("group_norm"), width, config.norm_num_groups, NORM_EPS)?,
            query: projection("to_q", "query")?,
            key: projection("to_k", "key")?,
            value: projection("to_v", "value")?,
            out: projection("to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let cells = self.group_norm.forward(x)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let (query, key, value) = (self.query.forward(&cells)?, self.key.forward(&cells)?, self.value.forward(&cells)?);
        let mixed = self.out.forward(&attention(&query, &key, &value, 1, AttentionMask::None)?)?;
        x + mixed.transpose(1, 2)?.contiguous()?.reshape(x.shape())?
    }
}
