//! Self-attention over the cells of a feature map, and cross-attention from them to the prompt.

use std::sync::Arc;

use candle_core::{DType, Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::{
    AttentionMask, FrozenGroupNorm, FrozenLayerNorm, Fusion, Prologue, attention, attention_rounded, feed_forward,
};

use super::cross_attention::{CrossAttentionKv, PromptInput};
use super::layout::{AttentionLayout, FeedForwardLayout, ProjectionShape, TransformerBlockLayout, TransformerLayout};
use crate::error::Result;
use crate::models::checkpoint::{Block, Pass};
use crate::models::config::UNetConfig;
use crate::models::slots::{LayerBuilder, LinearSlot, Projection};

/// A stack of transformer blocks over a feature map (`Transformer2DModel`).
#[derive(Debug)]
pub(super) struct Transformer {
    norm: FrozenGroupNorm,
    proj_in: Projection,
    blocks: Vec<Arc<TransformerBlock>>,
    proj_out: Projection,
}

impl Transformer {
    pub(super) fn load(builder: &LayerBuilder, layout: &TransformerLayout, config: &UNetConfig) -> Result<Self> {
        const NORM_EPS: f64 = 1e-6;
        let block = |layout| TransformerBlock::load(builder, layout).map(Arc::new);
        Ok(Self {
            norm: builder.group_norm(&layout.norm, config.norm_groups, NORM_EPS)?,
            proj_in: load_projection(builder, &layout.proj_in)?,
            blocks: layout.blocks.iter().map(block).collect::<Result<_>>()?,
            proj_out: load_projection(builder, &layout.proj_out)?,
        })
    }

    /// `x: [batch, channels, height, width]`.
    pub(super) fn forward(&self, x: &Tensor, prompt: PromptInput<'_>, pass: Pass<'_>) -> TensorResult<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let fusion = Fusion::after(Prologue::GroupNorm(&self.norm));
        let mut tokens = self.proj_in.to_tokens(x, fusion, pass.adapters)?;
        for block in &self.blocks {
            tokens = match prompt {
                PromptInput::Unseen => candle_core::bail!("`{}` is not before the first attention", block.path),
                PromptInput::Context(context) => pass.run(block, &[&tokens, context])?,
                PromptInput::Kv(kv) => {
                    let [keys, values] = kv.get(&block.path)?;
                    pass.run(block, &[&tokens, keys, values])?
                }
            };
        }
        self.proj_out.to_map(&tokens, (height, width), Fusion::default().onto(x), pass.adapters)
    }

    /// Adds the keys and values of `context: [batch, tokens, width]` of each block to `kv`.
    pub(super) fn cross_attention_kv(
        &self,
        context: &Tensor,
        adapters: &AdapterSet,
        kv: &mut CrossAttentionKv,
    ) -> TensorResult<()> {
        for block in &self.blocks {
            let (keys, values) = block.attn2.keys_and_values(context, adapters)?;
            kv.insert(&block.path, keys, values);
        }
        Ok(())
    }
}

fn load_projection(builder: &LayerBuilder, shape: &ProjectionShape) -> Result<Projection> {
    match shape {
        ProjectionShape::Linear(shape) => Ok(Projection::Linear(builder.linear(shape)?)),
        ProjectionShape::Conv2d(shape) => Ok(Projection::Conv2d(builder.conv2d(shape)?)),
    }
}

/// Self-attention, cross-attention and a feed-forward layer, each with its residual (`BasicTransformerBlock`).
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
    fn load(builder: &LayerBuilder, layout: &TransformerBlockLayout) -> Result<Self> {
        const NORM_EPS: f64 = 1e-5;
        Ok(Self {
            path: layout.path.clone(),
            norm1: builder.layer_norm(&layout.norm1, NORM_EPS)?,
            attn1: Attention::load(builder, &layout.attn1, layout.heads)?,
            norm2: builder.layer_norm(&layout.norm2, NORM_EPS)?,
            attn2: Attention::load(builder, &layout.attn2, layout.heads)?,
            norm3: builder.layer_norm(&layout.norm3, NORM_EPS)?,
            ff: FeedForward::load(builder, &layout.feed_forward)?,
        })
    }
}

impl Block for TransformerBlock {
    fn path(&self) -> &str {
        &self.path
    }

    /// `inputs`: tokens `[batch, cells, channels]`, and either the context `[batch, tokens, width]` or its keys and
    /// values.
    fn forward(&self, inputs: &[Tensor], pass: Pass<'_>) -> TensorResult<Tensor> {
        let (x, adapters) = (&inputs[0], pass.adapters);
        let normed = self.norm1.forward(x)?;
        let (key, value) = self.attn1.keys_and_values(&normed, adapters)?;
        let x = self.attn1.forward_onto(x, &normed, (&key, &value), adapters)?;
        let (key, value) = match &inputs[1..] {
            [key, value] => (key.clone(), value.clone()),
            _ => self.attn2.keys_and_values(&inputs[1], adapters)?,
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
    /// Whether the factors of its products are rounded to bf16, as in its projections.
    rounded: bool,
}

impl Attention {
    fn load(builder: &LayerBuilder, layout: &AttentionLayout, heads: usize) -> Result<Self> {
        Ok(Self {
            to_q: builder.linear(&layout.to_q)?,
            to_k: builder.linear(&layout.to_k)?,
            to_v: builder.linear(&layout.to_v)?,
            to_out: builder.linear(&layout.to_out)?,
            heads,
            rounded: builder.weights().dtype() == DType::BF16,
        })
    }

    /// Keys and values of `context: [batch, tokens, context_width]`: `[batch, tokens, width]` each.
    fn keys_and_values(&self, context: &Tensor, adapters: &AdapterSet) -> TensorResult<(Tensor, Tensor)> {
        Ok((self.to_k.forward(context, adapters)?, self.to_v.forward(context, adapters)?))
    }

    /// `residual` plus the attention of `x: [batch, cells, width]` to these keys and values.
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

/// A gated feed-forward layer, four times as wide between its projections (GEGLU, Shazeer 2020).
#[derive(Debug)]
struct FeedForward {
    path: String,
    dtype: DType,
    widen: LinearSlot,
    narrow: LinearSlot,
}

impl FeedForward {
    fn load(builder: &LayerBuilder, layout: &FeedForwardLayout) -> Result<Self> {
        Ok(Self {
            path: layout.path.clone(),
            dtype: builder.weights().dtype(),
            widen: builder.linear(&layout.widen)?,
            narrow: builder.linear(&layout.narrow)?,
        })
    }

    /// `x` plus the layer's output for `x` after `norm`. The activations between the two projections are kept for the
    /// backward pass or recomputed in it; both give the same bits.
    fn forward_onto(&self, x: &Tensor, norm: &FrozenLayerNorm, pass: Pass<'_>) -> TensorResult<Tensor> {
        let elements = WIDER * x.elem_count() as u64;
        let kept = x.track_op() && !pass.recompute.has(&self.path) && keeps_wide(elements, self.dtype);
        match (self.widen.frozen(pass.adapters), self.narrow.frozen(pass.adapters)) {
            (Some(widen), Some(narrow)) if !kept => feed_forward(x, norm, widen, narrow),
            _ => {
                let wide = self.widen.forward_fused(x, Fusion::after(Prologue::LayerNorm(norm)), pass.adapters)?;
                self.narrow.forward_fused(&wide, Fusion::after(Prologue::Geglu).onto(x), pass.adapters)
            }
        }
    }
}

/// Width between the projections in multiples of the outer width: four times for values and four times for gates.
const WIDER: u64 = 8;

/// Whether a feed-forward layer with weights of this type keeps the `elements` between its projections for the backward
/// pass.
///
/// More than 32 MiB (8 Mi elements of f32) do not stay in the CPU's cache: with bf16's fast products, recomputing them
/// in pieces then takes no longer than writing and reading them.
pub(crate) fn keeps_wide(elements: u64, weights: DType) -> bool {
    weights != DType::BF16 || elements <= 8 << 20
}
