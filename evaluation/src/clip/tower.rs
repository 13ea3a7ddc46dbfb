//! The stack of transformer blocks that both towers share.

use candle_core::{Result as CandleResult, Tensor};
use catelier_numerics::ops::{self, AttentionMask, FrozenLayerNorm, FrozenLinear};

use super::config::Activation;
use super::weights::{Expected, Weights, expect_with_bias};
use crate::error::Result;

/// The shape of a stack of blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct TowerConfig {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) activation: Activation,
    pub(super) epsilon: f64,
}

/// Transformer blocks, each normalising before attention and before its feed-forward.
pub(super) struct Tower {
    blocks: Vec<Block>,
}

struct Block {
    heads: usize,
    activation: Activation,
    attention_norm: FrozenLayerNorm,
    query: FrozenLinear,
    key: FrozenLinear,
    value: FrozenLinear,
    output: FrozenLinear,
    feed_forward_norm: FrozenLayerNorm,
    widen: FrozenLinear,
    narrow: FrozenLinear,
}

impl Tower {
    /// Loads `<path>.encoder.layers.*`.
    pub(super) fn load(weights: &Weights, path: &str, config: TowerConfig) -> Result<Self> {
        let blocks = (0..config.layers)
            .map(|layer| Block::load(weights, &block_path(path, layer), config))
            .collect::<Result<_>>()?;
        Ok(Self { blocks })
    }

    /// `hidden: [n, tokens, hidden_size]` to the same shape.
    pub(super) fn forward(&self, hidden: Tensor, mask: AttentionMask) -> CandleResult<Tensor> {
        self.blocks.iter().try_fold(hidden, |hidden, block| block.forward(&hidden, mask))
    }
}

impl Block {
    fn load(weights: &Weights, path: &str, config: TowerConfig) -> Result<Self> {
        let linear = |name: &str| weights.linear(&format!("{path}.{name}"));
        let norm = |name: &str| weights.norm(&format!("{path}.{name}"), config.epsilon);
        Ok(Self {
            heads: config.heads,
            activation: config.activation,
            attention_norm: norm("layer_norm1")?,
            query: linear("self_attn.q_proj")?,
            key: linear("self_attn.k_proj")?,
            value: linear("self_attn.v_proj")?,
            output: linear("self_attn.out_proj")?,
            feed_forward_norm: norm("layer_norm2")?,
            widen: linear("mlp.fc1")?,
            narrow: linear("mlp.fc2")?,
        })
    }

    fn forward(&self, hidden: &Tensor, mask: AttentionMask) -> CandleResult<Tensor> {
        let hidden = (hidden + self.attend(&self.attention_norm.forward(hidden)?, mask)?)?;
        &hidden + self.feed_forward(&self.feed_forward_norm.forward(&hidden)?)?
    }

    fn attend(&self, hidden: &Tensor, mask: AttentionMask) -> CandleResult<Tensor> {
        let query = self.query.forward(hidden)?;
        let key = self.key.forward(hidden)?;
        let value = self.value.forward(hidden)?;
        let mixed = ops::attention(&query, &key, &value, self.heads, mask)?;
        self.output.forward(&mixed)
    }

    fn feed_forward(&self, hidden: &Tensor) -> CandleResult<Tensor> {
        let wide = self.widen.forward(hidden)?;
        let active = match self.activation {
            Activation::QuickGelu => ops::quick_gelu(&wide)?,
            Activation::Gelu => ops::gelu(&wide)?,
        };
        self.narrow.forward(&active)
    }
}

/// Adds the tensors of `<path>.encoder.layers.*` to the expected ones.
pub(super) fn expect(path: &str, config: TowerConfig, expected: &mut Vec<Expected>) {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    for layer in 0..config.layers {
        let path = block_path(path, layer);
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            expect_with_bias(&format!("{path}.self_attn.{name}"), vec![hidden, hidden], expected);
        }
        for name in ["layer_norm1", "layer_norm2"] {
            expect_with_bias(&format!("{path}.{name}"), vec![hidden], expected);
        }
        expect_with_bias(&format!("{path}.mlp.fc1"), vec![wide, hidden], expected);
        expect_with_bias(&format!("{path}.mlp.fc2"), vec![hidden, wide], expected);
    }
}

fn block_path(path: &str, layer: usize) -> String {
    format!("{path}.encoder.layers.{layer}")
}
