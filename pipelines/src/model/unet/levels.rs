//! The levels of the UNet: down to coarser maps, through the middle, and up again beside the skips.

use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};

use super::attention::Transformer;
use super::blocks::{Downsample, ResnetBlock, Upsample};
use super::cross_attention::PromptInput;
use crate::error::Result;
use crate::model::checkpoint::Pass;
use crate::model::config::{UNetConfig, UNetLevel};
use crate::model::slots::Place;

/// Inputs of every block besides the map.
pub(super) struct BlockInputs<'a> {
    /// The activated time embedding: `[batch, width]`.
    pub(super) time: &'a Tensor,
    pub(super) prompt: PromptInput<'a>,
    pub(super) pass: Pass<'a>,
}

/// A residual block, and attention after it where the level has any.
#[derive(Debug)]
struct Layer {
    resnet: Arc<ResnetBlock>,
    attention: Option<Transformer>,
}

impl Layer {
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

/// Loads layer `index` of a level: `resnets.{index}` and, if asked for, `attentions.{index}`.
fn load_layer(
    place: &Place,
    index: usize,
    config: &UNetConfig,
    level: &UNetLevel,
    inputs: usize,
    with_attention: bool,
) -> Result<Layer> {
    let resnet = ResnetBlock::load(&place.nth("resnets", index), config, inputs, level.channels)?;
    let attention = || Transformer::load(&place.nth("attentions", index), config, level);
    Ok(Layer { resnet: Arc::new(resnet), attention: with_attention.then(attention).transpose()? })
}

/// A level on the way down: it leaves one skip for each layer and one for the smaller map.
#[derive(Debug)]
pub(super) struct DownLevel {
    layers: Vec<Layer>,
    downsample: Option<Downsample>,
}

impl DownLevel {
    /// All levels, finest first; every level but the last halves the map.
    pub(super) fn load_all(root: &Place, config: &UNetConfig) -> Result<Vec<Self>> {
        let count = config.levels.len();
        let mut inputs = config.levels[0].channels;
        let mut levels = Vec::with_capacity(count);
        for (index, level) in config.levels.iter().enumerate() {
            let place = root.nth("down_blocks", index);
            levels.push(Self::load(&place, config, level, inputs, index + 1 < count)?);
            inputs = level.channels;
        }
        Ok(levels)
    }

    fn load(place: &Place, config: &UNetConfig, level: &UNetLevel, inputs: usize, halve: bool) -> Result<Self> {
        let layers = (0..level.layers)
            .map(|index| {
                let inputs = if index == 0 { inputs } else { level.channels };
                load_layer(place, index, config, level, inputs, level.attention)
            })
            .collect::<Result<_>>()?;
        let downsample = || Downsample::load(&place.at("downsamplers.0"), level.channels);
        Ok(Self { layers, downsample: halve.then(downsample).transpose()? })
    }

    /// Its transformers, in order.
    pub(super) fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        self.layers.iter().filter_map(|layer| layer.attention.as_ref())
    }

    /// The output of the first residual block, which sees no prompt.
    pub(super) fn first_resnet(&self, x: &Tensor, time: &Tensor, pass: Pass<'_>) -> TensorResult<Tensor> {
        pass.run(&self.layers[0].resnet, &[x, time])
    }

    /// The smaller map; the skip connections are pushed to `skips`. `first` is the result of
    /// [`first_resnet`](Self::first_resnet).
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
    first: Layer,
    last: Layer,
}

impl MiddleLevel {
    pub(super) fn load(root: &Place, config: &UNetConfig) -> Result<Self> {
        let place = root.at("mid_block");
        let level = &config.levels[config.levels.len() - 1];
        Ok(Self {
            first: load_layer(&place, 0, config, level, level.channels, true)?,
            last: load_layer(&place, 1, config, level, level.channels, false)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, inputs: &BlockInputs<'_>) -> TensorResult<Tensor> {
        self.last.forward(&self.first.forward(x, inputs)?, inputs)
    }

    /// Its transformers, in order.
    pub(super) fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        [&self.first, &self.last].into_iter().filter_map(|layer| layer.attention.as_ref())
    }
}

/// A level on the way up: each layer takes one skip, and the map grows to the next skip's sides.
#[derive(Debug)]
pub(super) struct UpLevel {
    layers: Vec<Layer>,
    upsample: Option<Upsample>,
}

impl UpLevel {
    /// All levels, coarsest first; every level but the last doubles the map.
    pub(super) fn load_all(root: &Place, config: &UNetConfig) -> Result<Vec<Self>> {
        let mut skips = skip_channels(config);
        let count = config.levels.len();
        let mut inputs = config.levels[count - 1].channels;
        let mut levels = Vec::with_capacity(count);
        for (index, level) in config.levels.iter().rev().enumerate() {
            let place = root.nth("up_blocks", index);
            let mut layers = Vec::with_capacity(level.layers + 1);
            for layer in 0..=level.layers {
                let skip = skips.pop().unwrap_or(0);
                let with_attention = config.up_attention[index];
                layers.push(load_layer(&place, layer, config, level, inputs + skip, with_attention)?);
                inputs = level.channels;
            }
            let upsample = || Upsample::load(&place.at("upsamplers.0"), level.channels);
            levels.push(Self { layers, upsample: (index + 1 < count).then(upsample).transpose()? });
        }
        Ok(levels)
    }

    /// Its transformers, in order.
    pub(super) fn transformers(&self) -> impl Iterator<Item = &Transformer> {
        self.layers.iter().filter_map(|layer| layer.attention.as_ref())
    }

    /// The larger map; takes its skips from the end of `skips`.
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

/// Channels of the skips in the order they are pushed: after the first convolution, then level by level.
fn skip_channels(config: &UNetConfig) -> Vec<usize> {
    let last = config.levels.len() - 1;
    let mut skips = vec![config.levels[0].channels];
    for (index, level) in config.levels.iter().enumerate() {
        let halving = usize::from(index < last);
        skips.extend(vec![level.channels; level.layers + halving]);
    }
    skips
}
