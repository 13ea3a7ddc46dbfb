//! Attention over the cells of a feature map, and from them to the prompt.

use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::{AttentionMask, FrozenGroupNorm, FrozenLayerNorm, attention, geglu};

use crate::error::Result;
use crate::model::checkpoint::{Block, Pass};
use crate::model::config::{UNetConfig, UNetLevel};
use crate::model::slots::{Bias, Conv2dSlot, Convolution, LinearSlot, Place};

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
            proj_in: Projection::load(place, "proj_in", channels, config)?,
            blocks: (0..level.transformer_layers)
                .map(|index| TransformerBlock::load(&place.nth("transformer_blocks", index), level).map(Arc::new))
                .collect::<Result<_>>()?,
            proj_out: Projection::load(place, "proj_out", channels, config)?,
        })
    }

    /// `x: [batch, channels, height, width]`, `context: [batch, tokens, width]`.
    pub(super) fn forward(&self, x: &Tensor, context: &Tensor, pass: Pass<'_>) -> TensorResult<Tensor> {
        let map = self.norm.forward(x)?;
        let mut tokens = self.proj_in.to_tokens(&map, pass.adapters)?;
        for block in &self.blocks {
            tokens = pass.run(block, &[&tokens, context])?;
        }
        self.proj_out.to_map(&tokens, x.dims4()?, pass.adapters)? + x
    }
}

/// The projection at either end of a transformer; a linear layer sees tokens, a convolution the map.
#[derive(Debug)]
enum Projection {
    Linear(LinearSlot),
    Conv2d(Conv2dSlot),
}

impl Projection {
    fn load(place: &Place, name: &str, channels: usize, config: &UNetConfig) -> Result<Self> {
        if config.linear_projection {
            Ok(Self::Linear(place.linear(name, channels, channels, Bias::With)?))
        } else {
            Ok(Self::Conv2d(place.conv2d(name, Convolution::same(channels, channels, 1))?))
        }
    }

    /// `[batch, channels, height, width]` to `[batch, height * width, channels]`.
    fn to_tokens(&self, map: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        match self {
            Self::Linear(linear) => linear.forward(&map_to_tokens(map)?, adapters),
            Self::Conv2d(conv) => map_to_tokens(&conv.forward(map, adapters)?),
        }
    }

    /// `[batch, height * width, channels]` back to a map of the shape `dims`.
    fn to_map(
        &self,
        tokens: &Tensor,
        dims: (usize, usize, usize, usize),
        adapters: &AdapterSet,
    ) -> TensorResult<Tensor> {
        match self {
            Self::Linear(linear) => tokens_to_map(&linear.forward(tokens, adapters)?, dims),
            Self::Conv2d(conv) => conv.forward(&tokens_to_map(tokens, dims)?, adapters),
        }
    }
}

fn map_to_tokens(map: &Tensor) -> TensorResult<Tensor> {
    map.flatten_from(2)?.transpose(1, 2)?.contiguous()
}

fn tokens_to_map(tokens: &Tensor, dims: (usize, usize, usize, usize)) -> TensorResult<Tensor> {
    tokens.transpose(1, 2)?.contiguous()?.reshape(dims)
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

    /// `inputs`: tokens `[batch, cells, channels]` and context `[batch, tokens, width]`.
    fn forward(&self, inputs: &[Tensor], adapters: &AdapterSet) -> TensorResult<Tensor> {
        let (x, context) = (&inputs[0], &inputs[1]);
        let normed = self.norm1.forward(x)?;
        let x = (x + self.attn1.forward(&normed, &normed, adapters)?)?;
        let x = (&x + self.attn2.forward(&self.norm2.forward(&x)?, context, adapters)?)?;
        &x + self.ff.forward(&self.norm3.forward(&x)?, adapters)?
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
}

impl Attention {
    fn load(place: &Place, width: usize, context_width: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            to_q: place.linear("to_q", width, width, Bias::Without)?,
            to_k: place.linear("to_k", context_width, width, Bias::Without)?,
            to_v: place.linear("to_v", context_width, width, Bias::Without)?,
            to_out: place.linear("to_out.0", width, width, Bias::With)?,
            heads,
        })
    }

    /// From `x: [batch, cells, width]` to `context: [batch, tokens, context_width]`.
    fn forward(&self, x: &Tensor, context: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        let query = self.to_q.forward(x, adapters)?;
        let key = self.to_k.forward(context, adapters)?;
        let value = self.to_v.forward(context, adapters)?;
        let mixed = attention(&query, &key, &value, self.heads, AttentionMask::None)?;
        self.to_out.forward(&mixed, adapters)
    }
}

/// A gated feed-forward layer, four times as wide inside (GEGLU, Shazeer 2020).
#[derive(Debug)]
struct FeedForward {
    widen: LinearSlot,
    narrow: LinearSlot,
}

impl FeedForward {
    fn load(place: &Place, width: usize) -> Result<Self> {
        let inner = 4 * width;
        Ok(Self {
            widen: place.linear("net.0.proj", width, 2 * inner, Bias::With)?,
            narrow: place.linear("net.2", inner, width, Bias::With)?,
        })
    }

    fn forward(&self, x: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        self.narrow.forward(&geglu(&self.widen.forward(x, adapters)?)?, adapters)
    }
}
