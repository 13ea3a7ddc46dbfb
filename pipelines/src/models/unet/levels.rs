//! The levels of the UNet: down to coarser maps, the middle, and up again with the skip connections.

use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};

use super::attention::Transformer;
use super::blocks::{Downsample, ResnetBlock, Upsample};
use super::cross_attention::PromptInput;
use super::layout::{LayerLayout, LevelLayout};
use crate::error::Result;
use crate::models::checkpoint::Pass;
use crate::models::config::UNetConfig;
use crate::models::slots::LayerBuilder;

/// Inputs of every block besides the feature map.
pub(super) struct BlockInputs<'a> {
    /// The time embedding after SiLU: `[batch, width]`.
    pub(super) time: &'a Tensor,
    pub(super) prompt: PromptInput<'a>,
    pub(super) pass: Pass<'a>,
}

/// A residual block, followed by attention if the level has it.
#[derive(Debug)]
struct Layer {
    resnet: Arc<ResnetBlock>,
    attention: Option<Transformer>,
}

impl Layer {
    fn load(builder: &LayerBuilder, layout: &LayerLayout, config: &UNetConfig) -> Result<Self> {
        let attention = |layout| Transformer::load(builder, layout, config);
        Ok(Self {
            resnet: Arc::new(ResnetBlock::load(builder, &layout.resnet, config)?),
            attention: layout.attention.as_ref().map(attention).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, inputs: &BlockInputs<'_>) -> TensorResult<Tensor> {
        self.attend(inputs.pass.run(&self.resnet, &[x, inputs.time])?, inputs)
    }

    /// The attention after the residual block.
    fn attend(&self, x: Tensor, inputs: &BlockInputs<'_>) -> TensorResult<Tensor> {
        match &self.attention {
            Some(attention) => attention.forward(&x, inputs.prompt, inputs.pass),
            None => Ok(x),
        }
    }
}

/// A level on the way down: it adds one skip connection per layer and one for the smaller map.
#[derive(Debug)]
pub(super) struct DownLevel {
    layers: Vec<Layer>,
    downsample: Option<Downsample>,
}

impl DownLevel {
    pub(super) fn load(builder: &LayerBuilder, layout: &LevelLayout, config: &UNetConfig) -> Result<Self> {
        let downsample = |shape| Downsample::load(builder, shape);
        Ok(Self {
            layers: load_layers(builder, layout, config)?,
            downsample: layout.resample.as_ref().map(downsample).transpose()?,
        })
    }

    /// Its transformers, in order.
    pub(super) fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        self.layers.iter().filter_map(|layer| layer.attention.as_ref())
    }

    /// The output of the first residual block, which sees no prompt.
    pub(super) fn first_resnet(&self, x: &Tensor, time: &Tensor, pass: Pass<'_>) -> TensorResult<Tensor> {
        pass.run(&self.layers[0].resnet, &[x, time])
    }

    /// From `first`, the result of [`first_resnet`](Self::first_resnet), to the smaller map; pushes the skip
    /// connections to `skips`.
    pub(super) fn forward(
        &self,
        first: Tensor,
        skips: &mut Vec<Tensor>,
        inputs: &BlockInputs<'_>,
    ) -> TensorResult<Tensor> {
        let mut x = self.layers[0].attend(first, inputs)?;
        skips.push(x.clone());
        for layer in &self.layers[1..] {
            x = layer.forward(&x, inputs)?;
            skips.push(x.clone());
        }
        if let Some(downsample) = &self.downsample {
            x = downsample.forward(&x, inputs.pass.adapters)?;
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// The middle: attention between two residual blocks (`UNetMidBlock2DCrossAttn`).
#[derive(Debug)]
pub(super) struct MiddleLevel {
    layers: Vec<Layer>,
}

impl MiddleLevel {
    pub(super) fn load(builder: &LayerBuilder, layout: &LevelLayout, config: &UNetConfig) -> Result<Self> {
        Ok(Self { layers: load_layers(builder, layout, config)? })
    }

    pub(super) fn forward(&self, x: &Tensor, inputs: &BlockInputs<'_>) -> TensorResult<Tensor> {
        self.layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x, inputs))
    }

    /// Its transformers, in order.
    pub(super) fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        self.layers.iter().filter_map(|layer| layer.attention.as_ref())
    }
}

/// A level on the way up: each layer takes one skip connection, and the map is enlarged to the size of the next one.
#[derive(Debug)]
pub(super) struct UpLevel {
    layers: Vec<Layer>,
    upsample: Option<Upsample>,
}

impl UpLevel {
    pub(super) fn load(builder: &LayerBuilder, layout: &LevelLayout, config: &UNetConfig) -> Result<Self> {
        let upsample = |shape| Upsample::load(builder, shape);
        Ok(Self {
            layers: load_layers(builder, layout, config)?,
            upsample: layout.resample.as_ref().map(upsample).transpose()?,
        })
    }

    /// Its transformers, in order.
    pub(super) fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        self.layers.iter().filter_map(|layer| layer.attention.as_ref())
    }

    /// The enlarged map; pops the skip connections from the end of `skips`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        skips: &mut Vec<Tensor>,
        inputs: &BlockInputs<'_>,
    ) -> TensorResult<Tensor> {
        let mut x = x.clone();
        for layer in &self.layers {
            let skip = skips.pop().ok_or_else(|| candle_core::Error::msg("the way up needs more skips"))?;
            x = layer.forward(&Tensor::cat(&[x, skip], 1)?, inputs)?;
        }
        match (&self.upsample, skips.last()) {
            (Some(upsample), Some(next)) => {
                let (_, _, height, width) = next.dims4()?;
                upsample.forward(&x, (height, width), inputs.pass.adapters)
            }
            _ => Ok(x),
        }
    }
}

fn load_layers(builder: &LayerBuilder, layout: &LevelLayout, config: &UNetConfig) -> Result<Vec<Layer>> {
    layout.layers.iter().map(|layer| Layer::load(builder, layer, config)).collect()
}
