//! Residual blocks and the layers that change a feature map's sides.

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::{FrozenGroupNorm, Fusion, Prologue, upsample_nearest};

use crate::error::Result;
use crate::model::checkpoint::{Block, Pass};
use crate::model::config::UNetConfig;
use crate::model::slots::{Bias, Conv2dSlot, Convolution, LinearSlot, Place};

/// Two convolutions around the timestep, with a residual (`ResnetBlock2D`).
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
    pub(super) fn load(place: &Place, config: &UNetConfig, inputs: usize, outputs: usize) -> Result<Self> {
        let (groups, eps) = (config.norm_groups, config.norm_eps);
        let shortcut = || place.conv2d("conv_shortcut", Convolution::same(inputs, outputs, 1));
        Ok(Self {
            path: place.path().into(),
            norm1: place.group_norm("norm1", inputs, groups, eps)?,
            conv1: place.conv2d("conv1", Convolution::same(inputs, outputs, 3))?,
            time_emb_proj: place.linear("time_emb_proj", config.timestep.width, outputs, Bias::With)?,
            norm2: place.group_norm("norm2", outputs, groups, eps)?,
            conv2: place.conv2d("conv2", Convolution::same(outputs, outputs, 3))?,
            conv_shortcut: (inputs != outputs).then(shortcut).transpose()?,
        })
    }
}

impl Block for ResnetBlock {
    fn path(&self) -> &str {
        &self.path
    }

    /// `inputs`: a map `[batch, in, height, width]` and the activated time embedding `[batch, width]`.
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

/// Halves the sides, rounding up, with a strided convolution (`Downsample2D`).
#[derive(Debug)]
pub(super) struct Downsample {
    conv: Conv2dSlot,
}

impl Downsample {
    pub(super) fn load(place: &Place, channels: usize) -> Result<Self> {
        let shape = Convolution { stride: 2, ..Convolution::same(channels, channels, 3) };
        Ok(Self { conv: place.conv2d("conv", shape)? })
    }

    pub(super) fn forward(&self, x: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        self.conv.forward(x, adapters)
    }
}

/// Grows the sides to those of the skip connection that comes next, then convolves (`Upsample2D`).
#[derive(Debug)]
pub(super) struct Upsample {
    conv: Conv2dSlot,
}

impl Upsample {
    pub(super) fn load(place: &Place, channels: usize) -> Result<Self> {
        Ok(Self { conv: place.conv2d("conv", Convolution::same(channels, channels, 3))? })
    }

    pub(super) fn forward(&self, x: &Tensor, sides: (usize, usize), adapters: &AdapterSet) -> TensorResult<Tensor> {
        self.conv.forward(&upsample_nearest(x, sides)?, adapters)
    }
}
