//! Attention over the cells of a feature map, and from them to the prompt.

use std::sync::Arc;

use candle_core::{DType, Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::{
    AttentionMask, FrozenGroupNorm, FrozenLayerNorm, Fusion, Prologue, attention, attention_rounded, feed_forward,
};

use super::prompt_keys::{Prompt, PromptKeys};
use crate::error::Result;
use crate::model::checkpoint::{Block, Pass};
use crate::model::config::{UNetConfig, UNetLevel};
use crate::model::slots::{Bias, Convolution, LinearSlot, Place, Projection};

/// A stack of transformer blocks over a feature map (`Transformer2DModel`).
#[derive(Debug)]
pub(super) struct Transformer {
    norm: FrozenGroupNorm,
    proj_in: Projection,
    blocks: Vec<Arc<TransformerBlock>>,
    proj_out: Projection,
}

impl Transformer {
    pub(super) fn load(place: &Place, config: &UNetConfig, level: &UNetLevel) -> Result<Self> {
        const NORM_EPS: f64 = 1e-6;
        let channels = level.channels;
        Ok(Self {
            norm: place.group_norm("norm", channels, config.norm_groups, NORM_EPS)?,
            proj_in: load_projection(place, "proj_in", channels, config)?,
            blocks: (0..level.transformer_layers)
                .map(|index| TransformerBlock::load(&place.nth("transformer_blocks", index), level).map(Arc::new))
                .collect::<Result<_>>()?,
            proj_out: load_projection(place, "proj_out", channels, config)?,
        })
    }

    /// `x: [batch, channels, height, width]`.
    pub(super) fn forward(&self, x: &Tensor, prompt: Prompt<'_>, pass: Pass<'_>) -> TensorResult<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let fusion = Fusion::after(Prologue::GroupNorm(&self.norm));
        let mut tokens = self.proj_in.to_tokens(x, fusion, pass.adapters)?;
        for block in &self.blocks {
            tokens = match prompt {
                Prompt::Unseen => candle_core::bail!("`{}` is not before the first attention", block.path),
                Prompt::Context(context) => pass.run(block, &[&tokens, context])?,
                Prompt::Keys(keys) => {
                    let [keys, values] = keys.get(&block.path)?;
                    pass.run(block, &[&tokens, keys, values])?
                }
            };
        }
        self.proj_out.to_map(&tokens, (height, width), Fusion::default().onto(x), pass.adapters)
    }

    /// Puts what its blocks make of `context: [batch, tokens, width]` into `keys`.
    pub(super) fn read(&self, context: &Tensor, adapters: &AdapterSet, keys: &mut PromptKeys) -> TensorResult<()> {
        for block in &self.blocks {
            let (key, value) = block.attn2.keys(context, adapters)?;
            keys.insert(&block.path, key, value);
        }
        Ok(())
    }
}

fn load_projection(place: &Place, name: &str, channels: usize, config: &UNetConfig) -> Result<Projection> {
    if config.linear_projection {
        Ok(Projection::Linear(place.linear(name, channels, channels, Bias::With)?))
    } else {
        Ok(Projection::Conv2d(place.conv2d(name, Convolution::same(channels, channels, 1))?))
    }
}

/// Self-attention, attention to the prompt and a feed-forward layer, each with its residual
/// (`BasicTransformerBlock`).
#[derive(Debug)]
struct TransformerBlock {
    path: String,
    norm1: FrozenLayerNorm,
    attn1: Attention,
    norm2: FrozenLayerNorm,
    attn2: Attention,
    norm3: FrozenLayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn load(place: &Place, level: &UNetLevel) -> Result<Self> {
        const NORM_EPS: f64 = 1e-5;
        let width = level.channels;
        Ok(Self {
            path: place.path().into(),
            norm1: place.layer_norm("norm1", width, NORM_EPS)?,
            attn1: Attention::load(&place.at("attn1"), width, width, level.heads)?,
            norm2: place.layer_norm("norm2", width, NORM_EPS)?,
            attn2: Attention::load(&place.at("attn2"), width, level.context_width, level.heads)?,
            norm3: place.layer_norm("norm3", width, NORM_EPS)?,
            ff: FeedForward::load(&place.at("ff"), width)?,
        })
    }
}

impl Block for TransformerBlock {
    fn path(&self) -> &str {
        &self.path
    }

    /// `inputs`: tokens `[batch, cells, channels]`, and either the context `[batch, tokens, width]` or the keys and values
    /// that were made of it.
    fn forward(&self, inputs: &[Tensor], pass: Pass<'_>) -> TensorResult<Tensor> {
        let (x, adapters) = (&inputs[0], pass.adapters);
        let normed = self.norm1.forward(x)?;
        let (key, value) = self.attn1.keys(&normed, adapters)?;
        let x = self.attn1.forward_onto(x, &normed, (&key, &value), adapters)?;
        let (key, value) = match &inputs[1..] {
            [key, value] => (key.clone(), value.clone()),
            _ => self.attn2.keys(&inputs[1], adapters)?,
        };
        let x = self.attn2.forward_onto(&x, &self.norm2.forward(&x)?, (&key, &value), adapters)?;
        self.ff.forward_onto(&x, &self.norm3, pass)
    }
}

/// Multi-head attention with its four projections.
#[derive(Debug)]
struct Attention {
    to_q: LinearSlot,
    to_k: LinearSlot,
    to_v: LinearSlot,
    to_out: LinearSlot,
    heads: usize,
    /// Whether its products have factors of bf16, as its projections have.
    rounded: bool,
}

impl Attention {
    fn load(place: &Place, width: usize, context_width: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            to_q: place.linear("to_q", width, width, Bias::Without)?,
            to_k: place.linear("to_k", context_width, width, Bias::Without)?,
            to_v: place.linear("to_v", context_width, width, Bias::Without)?,
            to_out: place.linear("to_out.0", width, width, Bias::With)?,
            heads,
            rounded: place.weights().dtype() == DType::BF16,
        })
    }

    /// Keys and values of `context: [batch, tokens, context_width]`: `[batch, tokens, width]` each.
    fn keys(&self, context: &Tensor, adapters: &AdapterSet) -> TensorResult<(Tensor, Tensor)> {
        Ok((self.to_k.forward(context, adapters)?, self.to_v.forward(context, adapters)?))
    }

    /// `residual` plus what `x: [batch, cells, width]` finds by these keys and values.
    fn forward_onto(
        &self,
        residual: &Tensor,
        x: &Tensor,
        (key, value): (&Tensor, &Tensor),
        adapters: &AdapterSet,
    ) -> TensorResult<Tensor> {
        let query = self.to_q.forward(x, adapters)?;
        let attend = if self.rounded { attention_rounded } else { attention };
        let mixed = attend(&query, key, value, self.heads, AttentionMask::None)?;
        self.to_out.forward_fused(&mixed, Fusion::default().onto(residual), adapters)
    }
}

/// A gated feed-forward layer, four times as wide inside (GEGLU, Shazeer 2020).
#[derive(Debug)]
struct FeedForward {
    path: String,
    dtype: DType,
    widen: LinearSlot,
    narrow: LinearSlot,
}

impl FeedForward {
    fn load(place: &Place, width: usize) -> Result<Self> {
        let inner = 4 * width;
        Ok(Self {
            path: place.path().into(),
            dtype: place.weights().dtype(),
            widen: place.linear("net.0.proj", width, 2 * inner, Bias::With)?,
            narrow: place.linear("net.2", inner, width, Bias::With)?,
        })
    }

    /// `x` plus the layer behind its `norm`. What lies between the two projections is kept for a backward pass unless it was
    /// given up; the bits are the same.
    fn forward_onto(&self, x: &Tensor, norm: &FrozenLayerNorm, pass: Pass<'_>) -> TensorResult<Tensor> {
        let numbers = WIDER * x.elem_count() as u64;
        let kept = x.track_op() && !pass.recompute.has(&self.path) && keeps_wide(numbers, self.dtype);
        match (self.widen.frozen(pass.adapters), self.narrow.frozen(pass.adapters)) {
            (Some(widen), Some(narrow)) if !kept => feed_forward(x, norm, widen, narrow),
            _ => {
                let wide = self.widen.forward_fused(x, Fusion::after(Prologue::LayerNorm(norm)), pass.adapters)?;
                self.narrow.forward_fused(&wide, Fusion::after(Prologue::Geglu).onto(x), pass.adapters)
            }
        }
    }
}

/// How much wider a feed-forward layer is between its projections: values and gates, four times its width each.
const WIDER: u64 = 8;

/// Whether so many `numbers` between the projections of a feed-forward layer with weights of this type are kept for the backward
/// pass. More do not stay in the cache of a processor: with bf16's quick products, computing them again in pieces then takes no
/// longer than writing and reading them.
pub(crate) fn keeps_wide(numbers: u64, weights: DType) -> bool {
    weights != DType::BF16 || numbers <= 8 << 20
}
