//! The UNet that predicts noise (or velocity): `UNet2DConditionModel` of SD 1.x, SD 2.x and SDXL.

mod attention;
mod blocks;
mod levels;
mod prompt_keys;
mod time;

pub(crate) use attention::keeps_wide;
pub use prompt_keys::PromptKeys;

use std::sync::Arc;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use catelier_adapters::{AdapterSet, ModuleInfo};
use catelier_numerics::ops::{Around, FrozenGroupNorm, Prelude, silu};

use self::levels::{DownLevel, Guidance, MiddleLevel, UpLevel};
use self::prompt_keys::Prompt;
use self::time::{AddedEmbedding, TimeEmbedding};
use super::checkpoint::{Pass, Recompute};
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
    recompute: Arc<Recompute>,
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
            recompute: Arc::default(),
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

    /// Decides which blocks to [`Recompute`] from now on; after loading there are none.
    pub fn recompute(&mut self, recompute: Recompute) {
        self.recompute = Arc::new(recompute);
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
        let start = Start { latents: latents.clone(), timesteps: timesteps.clone(), stem: None };
        self.run(&start, condition, None, adapters, observe)
    }

    /// Begins predictions for these latents and timesteps under several conditions and adapter sets: what neither changes
    /// is computed here, once. Shapes as for [`predict`](Self::predict).
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn begin(&self, latents: &Tensor, timesteps: &Tensor, adapters: &[&AdapterSet]) -> Result<Start> {
        self.check_latents(latents, timesteps)?;
        let touched = |path: &str| adapters.iter().any(|set| !set.parameters_under(path).is_empty());
        let shared = self.added_embedding.is_none() && !STEM.into_iter().any(touched);
        let stem = || {
            let time = silu(&self.time_embedding.forward(timesteps, &AdapterSet::base())?)?;
            self.stem(latents, time, Pass { adapters: &AdapterSet::base(), recompute: &self.recompute })
        };
        let stem = shared.then(stem).transpose()?;
        Ok(Start { latents: latents.clone(), timesteps: timesteps.clone(), stem })
    }

    /// [`predict`](Self::predict) from a [`Start`], with the `keys` of this very condition and adapter set where they are
    /// known.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn predict_from(
        &self,
        start: &Start,
        condition: &Condition,
        keys: Option<&PromptKeys>,
        adapters: &AdapterSet,
    ) -> Result<Tensor> {
        self.run(start, condition, keys, adapters, &mut |_, _| {})
    }

    /// What every attention to the prompt makes of `condition` (`[batch, tokens, width]`) under `adapters`, without a graph;
    /// rows as the condition has them.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a context of another width.
    pub fn prompt_keys(&self, condition: &Condition, adapters: &AdapterSet) -> Result<PromptKeys> {
        let context = self.check_context(condition)?;
        let mut keys = PromptKeys::default();
        let down = self.down.iter().flat_map(DownLevel::transformers);
        let transformers = down.chain(self.middle.transformers());
        for transformer in transformers.chain(self.up.iter().flat_map(UpLevel::transformers)) {
            transformer.read(&context, adapters, &mut keys)?;
        }
        Ok(keys)
    }

    fn run(
        &self,
        start: &Start,
        condition: &Condition,
        keys: Option<&PromptKeys>,
        adapters: &AdapterSet,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        self.check_latents(&start.latents, &start.timesteps)?;
        self.check_condition(&start.latents, condition)?;
        let context = self.check_context(condition)?;
        let pass = Pass { adapters, recompute: &self.recompute };
        let stem = match &start.stem {
            Some(stem) => stem.clone(),
            None => {
                let time = self.embed_time(&start.timesteps, condition, adapters, observe)?;
                self.stem(&start.latents, silu(&time)?, pass)?
            }
        };
        let prompt = keys.map_or(Prompt::Context(&context), Prompt::Keys);
        Ok(self.predict_guided(&stem, &Guidance { time: &stem.time, prompt, pass }, observe)?)
    }

    /// Up to the first attention.
    fn stem(&self, latents: &Tensor, time: Tensor, pass: Pass<'_>) -> TensorResult<Stem> {
        let map = self.conv_in.forward(&latents.to_dtype(self.dtype)?, pass.adapters)?;
        let first = self.down[0].begin(&map, &time, pass)?;
        Ok(Stem { time, map, first })
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
        stem: &Stem,
        guidance: &Guidance<'_>,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> TensorResult<Tensor> {
        let adapters = guidance.pass.adapters;
        observe("conv_in", &stem.map);
        let mut skips = vec![stem.map.clone()];
        let mut x = stem.first.clone();
        for (index, level) in self.down.iter().enumerate() {
            if index > 0 {
                x = level.begin(&x, guidance.time, guidance.pass)?;
            }
            x = level.forward(x, &mut skips, guidance)?;
            observe(&format!("down_blocks.{index}"), &x);
        }
        x = self.middle.forward(&x, guidance)?;
        observe("mid_block", &x);
        for (index, level) in self.up.iter().enumerate() {
            x = level.forward(&x, &mut skips, guidance)?;
            observe(&format!("up_blocks.{index}"), &x);
        }
        self.conv_out.forward_around(&x, None, Around::after(Prelude::GroupNormSilu(&self.norm_out)), adapters)
    }

    fn check_latents(&self, latents: &Tensor, timesteps: &Tensor) -> Result<()> {
        let batch = latents.dims().first().copied().unwrap_or(0);
        expect_shape("latents", latents, &[Some(batch), Some(self.config.in_channels), None, None])?;
        expect_shape("timesteps", timesteps, &[Some(batch)])
    }

    /// The context in the type that the model computes in.
    fn check_context(&self, condition: &Condition) -> Result<Tensor> {
        expect_shape("context", &condition.context, &[None, None, Some(self.config.context_width())])?;
        Ok(condition.context.to_dtype(self.dtype)?)
    }

    fn check_condition(&self, latents: &Tensor, condition: &Condition) -> Result<()> {
        let batch = latents.dim(0)?;
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

/// Modules that are passed before the first attention.
const STEM: [&str; 3] = ["unet.time_embedding", "unet.conv_in", "unet.down_blocks.0.resnets.0"];

/// Where predictions for some latents begin; see [`UNet::begin`].
#[derive(Debug, Clone)]
pub struct Start {
    /// `[batch, in_channels, height, width]`.
    latents: Tensor,
    /// `[batch]`.
    timesteps: Tensor,
    /// `None` where the conditions or the adapters change it.
    stem: Option<Stem>,
}

/// What comes before the first attention.
#[derive(Debug, Clone)]
struct Stem {
    /// The activated time embedding: `[batch, width]`.
    time: Tensor,
    /// After the first convolution.
    map: Tensor,
    /// After the first residual block.
    first: Tensor,
}

impl Start {
    /// The same for all rows twice, one copy after the other.
    ///
    /// # Errors
    /// [`Error::Tensor`] when memory is short.
    pub fn twice(&self) -> Result<Self> {
        let twice = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 0);
        let stem = |stem: &Stem| -> TensorResult<Stem> {
            Ok(Stem { time: twice(&stem.time)?, map: twice(&stem.map)?, first: twice(&stem.first)? })
        };
        Ok(Self {
            latents: twice(&self.latents)?,
            timesteps: twice(&self.timesteps)?,
            stem: self.stem.as_ref().map(stem).transpose()?,
        })
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
