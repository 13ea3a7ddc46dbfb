//! The UNet that predicts noise (or velocity): `UNet2DConditionModel` of SD 1.x, SD 2.x and SDXL.

mod attention;
mod blocks;
mod levels;
mod time;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use catelier_adapters::{AdapterSet, ModuleInfo};
use catelier_numerics::ops::{FrozenGroupNorm, silu};

use self::levels::{DownLevel, Guidance, MiddleLevel, UpLevel};
use self::time::{AddedEmbedding, TimeEmbedding};
use super::checkpoint::{Activations, Pass};
use super::slots::{Conv2dSlot, Convolution, Place};
use super::{Condition, UNetConfig};
use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// A frozen UNet. Adapters are an argument of each call, so base and adapted predictions come from one model.
#[derive(Debug)]
pub struct UNet {
    config: UNetConfig,
    modules: Vec<ModuleInfo>,
    dtype: DType,
    activations: Activations,
    time_embedding: TimeEmbedding,
    added_embedding: Option<AddedEmbedding>,
    conv_in: Conv2dSlot,
    down: Vec<DownLevel>,
    middle: MiddleLevel,
    up: Vec<UpLevel>,
    norm_out: FrozenGroupNorm,
    conv_out: Conv2dSlot,
}

impl UNet {
    /// Loads `unet/` of a base model, with its weights converted to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::UnsupportedSettings`] for a configuration these networks do not follow,
    /// [`Error::TensorMismatch`] for weights that do not fit it, and those of [`ModelFiles::weights`].
    pub fn load(files: &ModelFiles, dtype: DType, device: &Device) -> Result<Self> {
        let config = UNetConfig::load(files)?;
        let weights = files.weights("unet", dtype, device)?;
        let root = Place::root("unet", weights.clone());
        let unet = Self::build(&root, config)?;
        weights.finish()?;
        Ok(unet)
    }

    /// Builds the layers in the order the data meets them, which is the order of [`modules`](Self::modules).
    fn build(root: &Place, config: UNetConfig) -> Result<Self> {
        let first = config.levels[0].channels;
        let time_embedding = TimeEmbedding::load(root, &config)?;
        let added_embedding = AddedEmbedding::load(root, &config)?;
        let conv_in = root.conv2d("conv_in", Convolution::same(config.in_channels, first, config.conv_in_kernel))?;
        let down = DownLevel::load_all(root, &config)?;
        let middle = MiddleLevel::load(root, &config)?;
        let up = UpLevel::load_all(root, &config)?;
        let norm_out = root.group_norm("conv_norm_out", first, config.norm_groups, config.norm_eps)?;
        let conv_out =
            root.conv2d("conv_out", Convolution::same(first, config.out_channels, config.conv_out_kernel))?;
        Ok(Self {
            modules: root.modules(),
            dtype: root.weights().activation_dtype(),
            activations: Activations::Keep,
            config,
            time_embedding,
            added_embedding,
            conv_in,
            down,
            middle,
            up,
            norm_out,
            conv_out,
        })
    }

    /// Whether the activations inside the blocks are computed again in the backward pass instead of kept: the same
    /// result and gradients with less memory, for about one more forward pass.
    #[must_use]
    pub fn with_checkpointing(mut self, checkpointing: bool) -> Self {
        self.activations = if checkpointing { Activations::Recompute } else { Activations::Keep };
        self
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// Every linear layer and convolution an adapter can reach, in the order the data meets them.
    pub fn modules(&self) -> &[ModuleInfo] {
        &self.modules
    }

    /// The type of its activations and of what it predicts: that of its weights, but f32 on the processor.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The model's prediction, `[batch, out_channels, height, width]`: noise or velocity, as it was trained.
    ///
    /// `latents: [batch, in_channels, height, width]`, any sides; `timesteps: [batch]`, one for each sample, of any
    /// number type.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the argument whose shape does not fit, [`Error::Tensor`] when memory is short.
    pub fn predict(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        condition: &Condition,
        adapters: &AdapterSet,
    ) -> Result<Tensor> {
        self.predict_observed(latents, timesteps, condition, adapters, &mut |_, _| {})
    }

    /// The same as [`predict`](Self::predict), showing `observe` the activations after `time_embedding`,
    /// `conv_in`, `down_blocks.{i}`, `mid_block` and `up_blocks.{i}`.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn predict_observed(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        condition: &Condition,
        adapters: &AdapterSet,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        self.check_inputs(latents, timesteps, condition)?;
        let time = self.embed_time(timesteps, condition, adapters, observe)?;
        let guidance = Guidance {
            time: &silu(&time)?,
            context: &condition.context.to_dtype(self.dtype)?,
            pass: Pass { adapters, activations: self.activations },
        };
        Ok(self.predict_guided(&latents.to_dtype(self.dtype)?, &guidance, observe)?)
    }

    /// The vector that tells every residual block the timestep and, in SDXL, the pooled prompt and sizes.
    fn embed_time(
        &self,
        timesteps: &Tensor,
        condition: &Condition,
        adapters: &AdapterSet,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> TensorResult<Tensor> {
        let time = self.time_embedding.forward(timesteps, adapters)?;
        observe("time_embedding", &time);
        match (&self.added_embedding, &condition.added) {
            (Some(embedding), Some(added)) => time + embedding.forward(added, adapters)?,
            _ => Ok(time),
        }
    }

    /// Down, through the middle and up again.
    fn predict_guided(
        &self,
        latents: &Tensor,
        guidance: &Guidance<'_>,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> TensorResult<Tensor> {
        let adapters = guidance.pass.adapters;
        let mut x = self.conv_in.forward(latents, adapters)?;
        observe("conv_in", &x);
        let mut skips = vec![x.clone()];
        for (index, level) in self.down.iter().enumerate() {
            x = level.forward(&x, &mut skips, guidance)?;
            observe(&format!("down_blocks.{index}"), &x);
        }
        x = self.middle.forward(&x, guidance)?;
        observe("mid_block", &x);
        for (index, level) in self.up.iter().enumerate() {
            x = level.forward(&x, &mut skips, guidance)?;
            observe(&format!("up_blocks.{index}"), &x);
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?, adapters)
    }

    fn check_inputs(&self, latents: &Tensor, timesteps: &Tensor, condition: &Condition) -> Result<()> {
        let batch = latents.dims().first().copied().unwrap_or(0);
        expect_shape("latents", latents, &[Some(batch), Some(self.config.in_channels), None, None])?;
        expect_shape("timesteps", timesteps, &[Some(batch)])?;
        expect_shape("context", &condition.context, &[Some(batch), None, Some(self.config.context_width())])?;
        match (&self.added_embedding, &condition.added) {
            (Some(embedding), Some(added)) => {
                expect_shape("pooled", &added.pooled, &[Some(batch), Some(embedding.pooled_width())])?;
                expect_shape("time_ids", &added.time_ids, &[Some(batch), Some(6)])
            }
            (None, None) => Ok(()),
            (Some(_), None) => Err(added_mismatch("a pooled prompt and picture sizes", "none")),
            (None, Some(_)) => Err(added_mismatch("none", "a pooled prompt and picture sizes")),
        }
    }
}

fn added_mismatch(expected: &str, found: &str) -> Error {
    Error::InvalidInput { what: "added condition", expected: expected.into(), found: found.into() }
}

/// Fails unless `tensor` has these dimensions; `None` stands for any size but zero.
fn expect_shape(what: &'static str, tensor: &Tensor, expected: &[Option<usize>]) -> Result<()> {
    let dims = tensor.dims();
    let fits = |(&dim, expected): (&usize, &Option<usize>)| dim > 0 && expected.is_none_or(|expected| dim == expected);
    if dims.len() == expected.len() && dims.iter().zip(expected).all(fits) {
        return Ok(());
    }
    let words: Vec<String> = expected.iter().map(|dim| dim.map_or("any".into(), |dim| dim.to_string())).collect();
    Err(Error::InvalidInput { what, expected: format!("[{}]", words.join(", ")), found: format!("{dims:?}") })
}
