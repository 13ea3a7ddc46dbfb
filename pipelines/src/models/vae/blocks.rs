//! The encoder and the decoder of the autoencoder, and their blocks.

use candle_core::{Result as TensorResult, Tensor};
use catelier_numerics::ops::{AttentionMask, FrozenConv2d, FrozenGroupNorm, FrozenLinear, attention, upsample_nearest};

use super::layout::{AttentionLayout, CoderLayout, LevelLayout, MiddleLayout, ResidualLayout};
use crate::error::Result;
use crate::models::config::VaeConfig;
use crate::models::shapes::LinearShape;
use crate::models::slots::LayerBuilder;

/// Epsilon of every group normalisation in the autoencoder.
const NORM_EPS: f64 = 1e-6;

/// The encoder: an image to the moments of its latents.
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: FrozenConv2d,
    levels: Vec<Level<HalveSides>>,
    middle: Middle,
    out: Output,
}

impl Encoder {
    pub(super) fn load(builder: &LayerBuilder, layout: &CoderLayout, config: &VaeConfig) -> Result<Self> {
        Ok(Self {
            conv_in: builder.frozen_conv2d(&layout.conv_in)?,
            levels: Level::load_all(builder, &layout.levels, config, HalveSides)?,
            middle: Middle::load(builder, &layout.middle, config)?,
            out: Output::load(builder, layout, config)?,
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

/// The decoder: latents to an image.
#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: FrozenConv2d,
    middle: Middle,
    levels: Vec<Level<DoubleSides>>,
    out: Output,
}

impl Decoder {
    pub(super) fn load(builder: &LayerBuilder, layout: &CoderLayout, config: &VaeConfig) -> Result<Self> {
        Ok(Self {
            conv_in: builder.frozen_conv2d(&layout.conv_in)?,
            middle: Middle::load(builder, &layout.middle, config)?,
            levels: Level::load_all(builder, &layout.levels, config, DoubleSides)?,
            out: Output::load(builder, layout, config)?,
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

/// Residual blocks, followed by a layer that halves or doubles the map in all levels but the last.
#[derive(Debug)]
struct Level<R> {
    blocks: Vec<ResidualBlock>,
    resize: Option<R>,
}

impl<R: Resize> Level<R> {
    /// All levels; `resize` builds the layer that halves or doubles the map from its convolution.
    fn load_all(
        builder: &LayerBuilder,
        layouts: &[LevelLayout],
        config: &VaeConfig,
        resize: fn(FrozenConv2d) -> R,
    ) -> Result<Vec<Self>> {
        let block = |layout: &ResidualLayout| ResidualBlock::load(builder, layout, config);
        let level = |layout: &LevelLayout| {
            Ok(Self {
                blocks: layout.blocks.iter().map(block).collect::<Result<_>>()?,
                resize: layout.resample.as_ref().map(|shape| builder.frozen_conv2d(shape).map(resize)).transpose()?,
            })
        };
        layouts.iter().map(level).collect()
    }

    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let mut x = x.clone();
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.resize.as_ref().map_or(Ok(x.clone()), |resize| resize.forward(&x))
    }
}

/// The layer between two levels, which halves or doubles the map.
trait Resize {
    fn forward(&self, x: &Tensor) -> TensorResult<Tensor>;
}

/// Halves height and width: a strided convolution over a map padded only at the right and the bottom.
#[derive(Debug)]
struct HalveSides(FrozenConv2d);

impl Resize for HalveSides {
    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        self.0.forward(&x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?)
    }
}

/// Doubles height and width, then convolves.
#[derive(Debug)]
struct DoubleSides(FrozenConv2d);

impl Resize for DoubleSides {
    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        self.0.forward(&upsample_nearest(x, (2 * height, 2 * width))?)
    }
}

/// A residual block, attention if the configuration has it, and a residual block.
#[derive(Debug)]
struct Middle {
    first: ResidualBlock,
    attention: Option<SelfAttention>,
    last: ResidualBlock,
}

impl Middle {
    fn load(builder: &LayerBuilder, layout: &MiddleLayout, config: &VaeConfig) -> Result<Self> {
        let attention = |layout| SelfAttention::load(builder, layout, config);
        Ok(Self {
            first: ResidualBlock::load(builder, &layout.first, config)?,
            attention: layout.attention.as_ref().map(attention).transpose()?,
            last: ResidualBlock::load(builder, &layout.last, config)?,
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

/// Normalisation, activation and the last convolution of the encoder or the decoder.
#[derive(Debug)]
struct Output {
    norm: FrozenGroupNorm,
    conv: FrozenConv2d,
}

impl Output {
    fn load(builder: &LayerBuilder, layout: &CoderLayout, config: &VaeConfig) -> Result<Self> {
        Ok(Self {
            norm: builder.group_norm(&layout.norm_out, config.norm_num_groups, NORM_EPS)?,
            conv: builder.frozen_conv2d(&layout.conv_out)?,
        })
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
    fn load(builder: &LayerBuilder, layout: &ResidualLayout, config: &VaeConfig) -> Result<Self> {
        let groups = config.norm_num_groups;
        let shortcut = |shape| builder.frozen_conv2d(shape);
        Ok(Self {
            norm1: builder.group_norm(&layout.norm1, groups, NORM_EPS)?,
            conv1: builder.frozen_conv2d(&layout.conv1)?,
            norm2: builder.group_norm(&layout.norm2, groups, NORM_EPS)?,
            conv2: builder.frozen_conv2d(&layout.conv2)?,
            conv_shortcut: layout.conv_shortcut.as_ref().map(shortcut).transpose()?,
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

/// Attention with one head over all cells of the map, with a residual.
#[derive(Debug)]
struct SelfAttention {
    group_norm: FrozenGroupNorm,
    query: FrozenLinear,
    key: FrozenLinear,
    value: FrozenLinear,
    out: FrozenLinear,
}

impl SelfAttention {
    fn load(builder: &LayerBuilder, layout: &AttentionLayout, config: &VaeConfig) -> Result<Self> {
        // Files saved before diffusers 0.18 use the names of the original code.
        let legacy_path = |name: &str| format!("{}.{name}", layout.path);
        let legacy = builder.contains(&legacy_path("query"));
        let projection = |shape: &LinearShape, legacy_name: &str| match legacy {
            true => builder.frozen_linear(&LinearShape { path: legacy_path(legacy_name), ..shape.clone() }),
            false => builder.frozen_linear(shape),
        };
        Ok(Self {
            group_norm: builder.group_norm(&layout.group_norm, config.norm_num_groups, NORM_EPS)?,
            query: projection(&layout.to_q, "query")?,
            key: projection(&layout.to_k, "key")?,
            value: projection(&layout.to_v, "value")?,
            out: projection(&layout.to_out, "proj_attn")?,
        })
    }

    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let cells = self.group_norm.forward(x)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let (query, key, value) = (self.query.forward(&cells)?, self.key.forward(&cells)?, self.value.forward(&cells)?);
        let mixed = self.out.forward(&attention(&query, &key, &value, 1, AttentionMask::None)?)?;
        x + mixed.transpose(1, 2)?.contiguous()?.reshape(x.shape())?
    }
}
