//! One layer of a CLIP text encoder.

use candle_core::{Result as TensorResult, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::{AttentionMask, FrozenLayerNorm, attention, gelu, quick_gelu};

use crate::error::Result;
use crate::model::config::{Activation, TextEncoderConfig};
use crate::model::slots::{Bias, LinearSlot, Place};

/// Causal self-attention and a feed-forward layer, each with its residual.
#[derive(Debug)]
pub(super) struct Layer {
    layer_norm1: FrozenLayerNorm,
    self_attn: SelfAttention,
    layer_norm2: FrozenLayerNorm,
    mlp: FeedForward,
}

impl Layer {
    pub(super) fn load(place: &Place, config: &TextEncoderConfig) -> Result<Self> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        Ok(Self {
            layer_norm1: place.layer_norm("layer_norm1", width, eps)?,
            self_attn: SelfAttention::load(&place.at("self_attn"), config)?,
            layer_norm2: place.layer_norm("layer_norm2", width, eps)?,
            mlp: FeedForward::load(&place.at("mlp"), config)?,
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
    fn load(place: &Place, config: &TextEncoderConfig) -> Result<Self> {
        let width = config.hidden_size;
        Ok(Self {
            q_proj: place.linear("q_proj", width, width, Bias::With)?,
            k_proj: place.linear("k_proj", width, width, Bias::With)?,
            v_proj: place.linear("v_proj", width, width, Bias::With)?,
            out_proj: place.linear("out_proj", width, width, Bias::With)?,
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
    fn load(place: &Place, config: &TextEncoderConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            fc1: place.linear("fc1", width, inner, Bias::With)?,
            fc2: place.linear("fc2", inner, width, Bias::With)?,
            activation: config.hidden_act,
        })
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
