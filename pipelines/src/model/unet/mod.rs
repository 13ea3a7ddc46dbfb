//! The UNet that predicts noise (or velocity): `UNet2DConditionModel` of SD 1.x, SD 2.x and SDXL.

mod attention;
mod blocks;
mod levels;
mod prompt_keys;
mod start;
mod time;

pub(crate) use attention::keeps_wide;
pub use prompt_keys::PromptKeys;
pub use start::{Beginning, Start};

use std::sync::Arc;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use catelier_adapters::{AdapterSet, ModuleInfo};
use catelier_numerics::ops::{FrozenGroupNorm, Fusion, Prologue};

use self::levels::{DownLevel, Guidance, MiddleLevel, UpLevel};
use self::prompt_keys::Prompt;
use self::start::Stem;
use self::time::{AddedEmbedding, TimeEmbedding};
use super::checkpoint::{Pass, Recompute};
use super::slots::{Conv2dSlot, Convolution, FrozenLayers, Place};
use super::{Condition, UNetConfig};
use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// A frozen UNet. Adapters are an argument of each call, so base and adapted predictions come from one model.
#[derive(Debug)]
pub struct UNet {
    config: UNetConfig,
    modules: Vec<ModuleInfo>,
    frozen_layers: FrozenLayers,
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
            frozen_layers: root.frozen_layers(),
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

    /// Norm of the weights of each output of the module at `path`, `[out]`: the magnitudes of a fresh DoRA.
    ///
    /// # Errors
    /// There is no such module.
    pub fn row_norms(&self, path: &str) -> TensorResult<Tensor> {
        self.frozen_layers.row_norms(path)
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
        let start = Start::fresh(latents, timesteps, condition.added.as_ref());
        self.run(&start, &condition.context, None, adapters, observe)
    }

    /// [`predict`](Self::predict) from a [`Start`] under `context: [batch, tokens, width]`, with the `keys` of this very
    /// context and adapter set where they are known.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn predict_from(
        &self,
        start: &Start,
        context: &Tensor,
        keys: Option<&PromptKeys>,
        adapters: &AdapterSet,
    ) -> Result<Tensor> {
        self.run(start, context, keys, adapters, &mut |_, _| {})
    }

    /// What every attention to the prompt makes of `context: [batch, tokens, width]` under `adapters`, without a graph.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a context of another width.
    pub fn prompt_keys(&self, context: &Tensor, adapters: &AdapterSet) -> Result<PromptKeys> {
        let context = self.check_context(context, None)?;
        let mut keys = PromptKeys::default();
        let down = self.down.iter().flat_map(DownLevel::transformers);
        let transformers = down.chain(self.middle.transformers());
        for transformer in transformers.chain(self.up.iter().flat_map(UpLevel::transformers)) {
            transformer.read(&context, adapters, &mut keys)?;
        }
        Ok(keys)
    }

    /// The layers that make keys and values of the prompt, in order.
    pub fn prompt_readers(&self) -> impl Iterator<Item = &ModuleInfo> {
        let reads = |path: &str| path.ends_with(".attn2.to_k") || path.ends_with(".attn2.to_v");
        self.modules.iter().filter(move |module| reads(&module.path))
    }

    /// Whether the model makes the same keys and values of every prompt under `adapters` as without them.
    pub fn reads_prompts_as_the_base(&self, adapters: &AdapterSet) -> bool {
        !self.prompt_readers().any(|reader| adapters.adapts(&reader.path))
    }

    fn run(
        &self,
        start: &Start,
        context: &Tensor,
        keys: Option<&PromptKeys>,
        adapters: &AdapterSet,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        self.check_latents(&start.latents, &start.timesteps)?;
        let context = self.check_context(context, Some(start.latents.dim(0)?))?;
        self.check_added(&start.latents, start.added.as_ref())?;
        let pass = Pass { adapters, recompute: &self.recompute };
        let Stem { time, skips, begun } = self.stem_of(start, pass, observe)?;
        let prompt = keys.map_or(Prompt::Context(&context), Prompt::Keys);
        Ok(self.predict_guided(begun, skips, &Guidance { time: &time, prompt, pass }, observe)?)
    }

    /// Down from the first attention, through the middle and up again.
    fn predict_guided(
        &self,
        mut x: Tensor,
        mut skips: Vec<Tensor>,
        guidance: &Guidance<'_>,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> TensorResult<Tensor> {
        let adapters = guidance.pass.adapters;
        let first = self.first_attention();
        for (index, level) in self.down.iter().enumerate().skip(first) {
            if index > first {
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
        self.conv_out.forward_fused(&x, None, Fusion::after(Prologue::GroupNormSilu(&self.norm_out)), adapters)
    }

    fn check_latents(&self, latents: &Tensor, timesteps: &Tensor) -> Result<()> {
        let batch = latents.dims().first().copied().unwrap_or(0);
        expect_shape("latents", latents, &[Some(batch), Some(self.config.in_channels), None, None])?;
        expect_shape("timesteps", timesteps, &[Some(batch)])
    }

    /// The context in the type that the model computes in.
    fn check_context(&self, context: &Tensor, batch: Option<usize>) -> Result<Tensor> {
        expect_shape("context", context, &[batch, None, Some(self.config.context_width())])?;
        Ok(context.to_dtype(self.dtype)?)
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
