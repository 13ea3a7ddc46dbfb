//! One layer of a CLIP text encoder.

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::{AttentionMask, FrozenLayerNorm, attention, gelu, quick_gelu};

use super::layout::TextLayerLayout;
use crate::error::Result;
use crate::models::config::{Activation, TextEncoderConfig};
use crate::models::slots::{LayerBuilder, LinearSlot};

/// Causal self-attention and a feed-forward layer, each with its residual.
#[derive(Debug)]
pub(super) struct Layer {
    layer_norm1: FrozenLayerNorm,
    self_attn: SelfAttention,
    layer_norm2: FrozenLayerNorm,
    mlp: FeedForward,
}

impl Layer {
    pub(super) fn load(builder: &LayerBuilder, layout: &TextLayerLayout, config: &TextEncoderConfig) -> Result<Self> {
        let eps = config.layer_norm_eps;
        Ok(Self {
            layer_norm1: builder.layer_norm(&layout.layer_norm1, eps)?,
            self_attn: SelfAttention::load(builder, layout, config)?,
            layer_norm2: builder.layer_norm(&layout.layer_norm2, eps)?,
            mlp: FeedForward::load(builder, layout, config)?,
        })
    }

    /// `x: [batch, tokens, width]`.
    pub(super) fn forward(&self, x: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        let x = (x + self.self_attn.forward(&self.layer_norm1.forward(x)?, adapters)?)?;
        &x + self.mlp.forward(&self.layer_norm2.forward(&x)?, adapters)?
    }
}

#[derive(Debug)]
struct SelfAttention {
    q_proj: LinearSlot,
    k_proj: LinearSlot,
    v_proj: LinearSlot,
    out_proj: LinearSlot,
    heads: usize,
}

impl SelfAttention {
    fn load(builder: &LayerBuilder, layout: &TextLayerLayout, config: &TextEncoderConfig) -> Result<Self> {
        Ok(Self {
            q_proj: builder.linear(&layout.q_proj)?,
            k_proj: builder.linear(&layout.k_proj)?,
            v_proj: builder.linear(&layout.v_proj)?,
            out_proj: builder.linear(&layout.out_proj)?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        let query = self.q_proj.forward(x, adapters)?;
        let key = self.k_proj.forward(x, adapters)?;
        let value = self.v_proj.forward(x, adapters)?;
        let mixed = attention(&query, &key, &value, self.heads, AttentionMask::Causal)?;
        self.out_proj.forward(&mixed, adapters)
    }
}

#[derive(Debug)]
struct FeedForward {
    fc1: LinearSlot,
    fc2: LinearSlot,
    activation: Activation,
}

impl FeedForward {
    fn load(builder: &LayerBuilder, layout: &TextLayerLayout, config: &TextEncoderConfig) -> Result<Self> {
        Ok(Self { fc1: builder.linear(&layout.fc1)?, fc2: builder.linear(&layout.fc2)?, activation: config.hidden_act })
    }

    fn forward(&self, x: &Tensor, adapters: &AdapterSet) -> TensorResult<Tensor> {
        let wide = self.fc1.forward(x, adapters)?;
        let wide = match self.activation {
            Activation::QuickGelu => quick_gelu(&wide)?,
            Activation::Gelu => gelu(&wide)?,
        };
        self.fc2.forward(&wide, adapters)
    }
}
