//! The UNet that predicts noise (or velocity): `UNet2DConditionModel` of SD 1.x, SD 2.x and SDXL.

mod attention;
mod batch;
mod blocks;
mod cross_attention;
mod layout;
mod levels;
mod prefix;
mod time;

pub(crate) use attention::keeps_wide;
pub use batch::conditions_together;
pub use cross_attention::CrossAttentionKv;
pub(crate) use layout::{
    LayerLayout, LevelLayout, MlpLayout, ProjectionShape, ResnetLayout, TransformerBlockLayout, TransformerLayout,
    UNetLayout,
};
pub use prefix::{Prefix, SharedPrefix};

use std::sync::Arc;

use candle_core::{DType, Device, Result as TensorResult, Tensor};
use catelier_adapters::{AdapterSet, ModuleInfo};
use catelier_numerics::ops::{FrozenGroupNorm, Fusion, Prologue};

use self::cross_attention::PromptInput;
use self::levels::{BlockInputs, DownLevel, MiddleLevel, UpLevel};
use self::prefix::PrefixOutput;
use self::time::{AddedEmbedding, TimeEmbedding};
use super::checkpoint::{Pass, Recompute};
use super::slots::{Conv2dSlot, FrozenLayers, LayerBuilder};
use super::{Condition, UNetConfig};
use crate::error::{Error, Result};
use crate::models::files::ModelFiles;

/// A frozen UNet. Adapters are an argument of each call, so one model gives base and adapted predictions.
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
    /// [`Error::UnsupportedSettings`] for a configuration that these networks do not implement,
    /// [`Error::TensorMismatch`] for weights that do not fit it, and those of [`ModelFiles::weights`].
    pub fn load(files: &ModelFiles, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_config(UNetConfig::load(files)?, files, dtype, device)
    }

    /// [`load`](Self::load) with a configuration that has been read already.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn from_config(config: UNetConfig, files: &ModelFiles, dtype: DType, device: &Device) -> Result<Self> {
        let weights = files.weights("unet", dtype, device)?;
        let layout = UNetLayout::new(&config);
        weights.expect(&layout.tensors())?;
        Self::build(&LayerBuilder::new("unet", weights), &layout, config)
    }

    /// Builds the layers in the order of the forward pass, which is the order of [`modules`](Self::modules).
    fn build(builder: &LayerBuilder, layout: &UNetLayout, config: UNetConfig) -> Result<Self> {
        let down = |level| DownLevel::load(builder, level, &config);
        let up = |level| UpLevel::load(builder, level, &config);
        Ok(Self {
            time_embedding: TimeEmbedding::load(builder, &layout.time_embedding, &config)?,
            added_embedding: AddedEmbedding::load(builder, layout, &config)?,
            conv_in: builder.conv2d(&layout.conv_in)?,
            down: layout.down.iter().map(down).collect::<Result<_>>()?,
            middle: MiddleLevel::load(builder, &layout.middle, &config)?,
            up: layout.up.iter().map(up).collect::<Result<_>>()?,
            norm_out: builder.group_norm(&layout.norm_out, config.norm_groups, config.norm_eps)?,
            conv_out: builder.conv2d(&layout.conv_out)?,
            modules: layout.modules(),
            frozen_layers: builder.frozen_layers(),
            dtype: builder.weights().activation_dtype(),
            recompute: Arc::default(),
            config,
        })
    }

    /// Sets the blocks to [`Recompute`] from now on; after loading no block is recomputed.
    pub fn recompute(&mut self, recompute: Recompute) {
        self.recompute = Arc::new(recompute);
    }

    /// The configuration that it was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// Every linear layer and convolution that an adapter can change, in the order of the forward pass.
    pub fn modules(&self) -> &[ModuleInfo] {
        &self.modules
    }

    /// Norm of the weights of each output of the module at `path`, `[out]`: the initial magnitudes of a DoRA.
    ///
    /// # Errors
    /// An error if there is no such module.
    pub fn row_norms(&self, path: &str) -> TensorResult<Tensor> {
        self.frozen_layers.row_norms(path)
    }

    /// Type of its activations and predictions: the type of its weights, but f32 on the CPU for weights in half
    /// precision.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The model's prediction, `[batch, out_channels, height, width]`: noise or velocity, as it was trained.
    ///
    /// `latents: [batch, in_channels, height, width]`, of any height and width; `timesteps: [batch]`, of any number
    /// type.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] naming the argument whose shape does not fit, [`Error::Tensor`] if memory is short.
    pub fn predict(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        condition: &Condition,
        adapters: &AdapterSet,
    ) -> Result<Tensor> {
        self.predict_observed(latents, timesteps, condition, adapters, &mut |_, _| {})
    }

    /// [`predict`](Self::predict), which also calls `observe` with the activations after `time_embedding`, `conv_in`,
    /// `down_blocks.{i}`, `mid_block` and `up_blocks.{i}`.
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
        let prefix = Prefix::uncomputed(latents, timesteps, condition.added.as_ref());
        self.run(&prefix, &condition.context, None, adapters, observe)
    }

    /// [`predict`](Self::predict) from a [`Prefix`], with the cross-attention keys and values of
    /// `context: [batch, tokens, width]` under the same adapters if they have been computed.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn predict_from(
        &self,
        prefix: &Prefix,
        context: &Tensor,
        kv: Option<&CrossAttentionKv>,
        adapters: &AdapterSet,
    ) -> Result<Tensor> {
        self.run(prefix, context, kv, adapters, &mut |_, _| {})
    }

    /// Keys and values of every cross-attention layer for `context: [batch, tokens, width]` under `adapters`, without a
    /// graph.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a context of another width.
    pub fn cross_attention_kv(&self, context: &Tensor, adapters: &AdapterSet) -> Result<CrossAttentionKv> {
        let context = self.check_context(context, None)?;
        let mut kv = CrossAttentionKv::default();
        let down = self.down.iter().flat_map(DownLevel::transformers);
        let transformers = down.chain(self.middle.transformers());
        for transformer in transformers.chain(self.up.iter().flat_map(UpLevel::transformers)) {
            transformer.cross_attention_kv(&context, adapters, &mut kv)?;
        }
        Ok(kv)
    }

    /// The projections to keys and values of every cross-attention layer, in order.
    pub fn cross_attention_projections(&self) -> impl Iterator<Item = &ModuleInfo> {
        let projects = |path: &str| path.ends_with(".attn2.to_k") || path.ends_with(".attn2.to_v");
        self.modules.iter().filter(move |module| projects(&module.path))
    }

    /// Whether `adapters` change no cross-attention projection: the base's keys and values are then those with
    /// `adapters` too.
    pub fn leaves_cross_attention_unadapted(&self, adapters: &AdapterSet) -> bool {
        !self.cross_attention_projections().any(|projection| adapters.adapts(&projection.path))
    }

    fn run(
        &self,
        prefix: &Prefix,
        context: &Tensor,
        kv: Option<&CrossAttentionKv>,
        adapters: &AdapterSet,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        self.check_latents(&prefix.latents, &prefix.timesteps)?;
        let context = self.check_context(context, Some(prefix.latents.dim(0)?))?;
        self.check_added(&prefix.latents, prefix.added.as_ref())?;
        let pass = Pass { adapters, recompute: &self.recompute };
        let PrefixOutput { time, skips, map } = self.prefix_output(prefix, pass, observe)?;
        let prompt = kv.map_or(PromptInput::Context(&context), PromptInput::Kv);
        Ok(self.after_prefix(map, skips, &BlockInputs { time: &time, prompt, pass }, observe)?)
    }

    /// The blocks from the first attention on: the rest of the way down, the middle, the way up.
    fn after_prefix(
        &self,
        mut x: Tensor,
        mut skips: Vec<Tensor>,
        inputs: &BlockInputs<'_>,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> TensorResult<Tensor> {
        let adapters = inputs.pass.adapters;
        let first = self.first_attention();
        for (index, level) in self.down.iter().enumerate().skip(first) {
            if index > first {
                x = level.first_resnet(&x, inputs.time, inputs.pass)?;
            }
            x = level.forward(x, &mut skips, inputs)?;
            observe(&format!("down_blocks.{index}"), &x);
        }
        x = self.middle.forward(&x, inputs)?;
        observe("mid_block", &x);
        for (index, level) in self.up.iter().enumerate() {
            x = level.forward(&x, &mut skips, inputs)?;
            observe(&format!("up_blocks.{index}"), &x);
        }
        self.conv_out.forward_fused(&x, None, Fusion::after(Prologue::GroupNormSilu(&self.norm_out)), adapters)
    }

    fn check_latents(&self, latents: &Tensor, timesteps: &Tensor) -> Result<()> {
        let batch = latents.dims().first().copied().unwrap_or(0);
        expect_shape("latents", latents, &[Some(batch), Some(self.config.in_channels), None, None])?;
        expect_shape("timesteps", timesteps, &[Some(batch)])
    }

    /// The context, converted to the type that the model computes in.
    fn check_context(&self, context: &Tensor, batch: Option<usize>) -> Result<Tensor> {
        expect_shape("context", context, &[batch, None, Some(self.config.context_width())])?;
        Ok(context.to_dtype(self.dtype)?)
    }
}

fn added_mismatch(expected: &str, found: &str) -> Error {
    Error::InvalidInput { what: "added condition", expected: expected.into(), found: found.into() }
}

/// An error unless `tensor` has the `expected` dimensions; `None` stands for any size above zero.
fn expect_shape(what: &'static str, tensor: &Tensor, expected: &[Option<usize>]) -> Result<()> {
    let dims = tensor.dims();
    let fits = |(&dim, expected): (&usize, &Option<usize>)| dim > 0 && expected.is_none_or(|expected| dim == expected);
    if dims.len() == expected.len() && dims.iter().zip(expected).all(fits) {
        return Ok(());
    }
    let words: Vec<String> = expected.iter().map(|dim| dim.map_or("any".into(), |dim| dim.to_string())).collect();
    Err(Error::InvalidInput { what, expected: format!("[{}]", words.join(", ")), found: format!("{dims:?}") })
}
