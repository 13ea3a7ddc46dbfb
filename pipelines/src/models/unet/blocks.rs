//! Residual blocks, and the layers that halve or enlarge a feature map.

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::{FrozenGroupNorm, Fusion, Prologue, upsample_nearest};

use super::layout::ResnetLayout;
use crate::error::Result;
use crate::models::checkpoint::{Block, Pass};
use crate::models::config::UNetConfig;
use crate::models::shapes::Conv2dShape;
use crate::models::slots::{Conv2dSlot, LayerBuilder, LinearSlot};

/// Two convolutions with the time embedding added between them, and a residual (`ResnetBlock2D`).
#[derive(Debug)]
pub(super) struct ResnetBlock {
    path: String,
    norm1: FrozenGroupNorm,
    conv1: Conv2dSlot,
    time_emb_proj: LinearSlot,
    norm2: FrozenGroupNorm,
    conv2: Conv2dSlot,
    conv_shortcut: Option<Conv2dSlot>,
}

impl ResnetBlock {
    pub(super) fn load(builder: &LayerBuilder, layout: &ResnetLayout, config: &UNetConfig) -> Result<Self> {
        let (groups, eps) = (config.norm_groups, config.norm_eps);
        Ok(Self {
            path: layout.path.clone(),
            norm1: builder.group_norm(&layout.norm1, groups, eps)?,
            conv1: builder.conv2d(&layout.conv1)?,
            time_emb_proj: builder.linear(&layout.time_emb_proj)?,
            norm2: builder.group_norm(&layout.norm2, groups, eps)?,
            conv2: builder.conv2d(&layout.conv2)?,
            conv_shortcut: layout.conv_shortcut.as_ref().map(|shape| builder.conv2d(shape)).transpose()?,
        })
    }
}

impl Block for ResnetBlock {
    fn path(&self) -> &str {
        &self.path
    }

    /// `inputs`: a map `[batch, in, height, width]` and the time embedding after SiLU `[batch, width]`.
    fn forward(&self, inputs: &[Tensor], Pass { adapters, .. }: Pass<'_>) -> TensorResult<Tensor> {
        let (x, time) = (&inputs[0], &inputs[1]);
        let time = self.time_emb_proj.forward(time, adapters)?;
        let fusion = Fusion::after(Prologue::GroupNormSilu(&self.norm1));
        let hidden = self.conv1.forward_fused(x, Some(&time), fusion, adapters)?;
        let residual = match &self.conv_shortcut {
            Some(conv) => conv.forward(x, adapters)?,
            None => x.clone(),
        };
        let fusion = Fusion::after(Prologue::GroupNormSilu(&self.norm2));
        self.conv2.forward_fused(&hidden, None, fusion.onto(&residual), adapters)
    }
}

/// Halves height and width, rounding up, with a strided convolution (`Downsample2D`).
#[derive(Debug)]
pub(super) struct Downsample {
    conv: Conv2dSlot,
}

impl Downsample {
    pub(super) fn load(builder: &LayerBuilder, shape: &Conv2dShape) -> Result<Self> {
        Ok(Self { conv: builder.conv2d(shape)? })
    }

    pub(super) fn forward(&self, x: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        self.conv.forward(x, adapters)
    }
}

/// Enlarges the map to the size of the next skip connection, then convolves (`Upsample2D`).
#[derive(Debug)]
pub(super) struct Upsample {
    conv: Conv2dSlot,
}

impl Upsample {
    pub(super) fn load(builder: &LayerBuilder, shape: &Conv2dShape) -> Result<Self> {
        Ok(Self { conv: builder.conv2d(shape)? })
    }

    pub(super) fn forward(&self, x: &Tensor, sides: (usize, usize), adapters: &AdapterSet) -> TensorResult<Tensor> {
        self.conv.forward(&upsample_nearest(x, sides)?, adapters)
    }
}
