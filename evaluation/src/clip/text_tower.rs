//! The text tower: tokens through a causal transformer; the end token speaks for the text.

use candle_core::{Result as CandleResult, Tensor};
use catelier_numerics::ops::{AttentionMask, FrozenLayerNorm, FrozenLinear};

use super::config::ClipConfig;
use super::tower::{self, Tower};
use super::weights::{Expected, Weights, expect_with_bias};
use crate::error::Result;

const TOKENS: &str = "text_model.embeddings.token_embedding.weight";
const POSITIONS: &str = "text_model.embeddings.position_embedding.weight";
const NORM_AFTER: &str = "text_model.final_layer_norm";

/// What old configuration files say for the end token, although it is none.
const LEGACY_END: u32 = 2;

/// Token ids to features.
pub(super) struct TextTower {
    tokens: Tensor,
    positions: Tensor,
    tower: Tower,
    norm_after: FrozenLayerNorm,
    projection: FrozenLinear,
    end: u32,
}

impl TextTower {
    pub(super) fn load(weights: &Weights, config: &ClipConfig) -> Result<Self> {
        let text = &config.text;
        Ok(Self {
            tokens: weights.tensor(TOKENS)?,
            positions: weights.tensor(POSITIONS)?,
            tower: Tower::load(weights, "text_model", text.tower())?,
            norm_after: weights.norm(NORM_AFTER, text.layer_norm_eps)?,
            projection: weights.projection("text_projection")?,
            end: text.eos_token_id,
        })
    }

    /// `ids: [n, tokens]` to the end token's projection, `[n, projection_dim]`.
    pub(super) fn forward(&self, ids: &Tensor) -> CandleResult<Tensor> {
        let hidden = self.tower.forward(self.embed(ids)?, AttentionMask::Causal)?;
        let pooled = self.pool(&self.norm_after.forward(&hidden)?, ids)?;
        self.projection.forward(&pooled)
    }

    fn embed(&self, ids: &Tensor) -> CandleResult<Tensor> {
        let (n, length) = ids.dims2()?;
        let tokens = self.tokens.index_select(&ids.flatten_all()?, 0)?;
        let tokens = tokens.reshape((n, length, ()))?;
        tokens.broadcast_add(&self.positions.narrow(0, 0, length)?)
    }

    fn pool(&self, hidden: &Tensor, ids: &Tensor) -> CandleResult<Tensor> {
        let rows = ids.to_vec2::<u32>()?.into_iter().enumerate();
        let pooled = rows
            .map(|(row, ids)| hidden.get(row)?.get(end_position(&ids, self.end)))
            .collect::<CandleResult<Vec<_>>>()?;
        Tensor::stack(&pooled, 0)
    }
}

/// The position of the first end token; for old files, that of the first highest id.
fn end_position(ids: &[u32], end: u32) -> usize {
    let wanted = match end {
        LEGACY_END => ids.iter().copied().max().unwrap_or(end),
        end => end,
    };
    ids.iter().position(|id| *id == wanted).unwrap_or(0)
}

/// Adds the text tower's tensors to the expected ones.
pub(super) fn expect(config: &ClipConfig, expected: &mut Vec<Expected>) {
    let text = &config.text;
    let hidden = text.hidden_size;
    expected.push((TOKENS.to_owned(), vec![text.vocab_size, hidden]));
    expected.push((POSITIONS.to_owned(), vec![text.max_position_embeddings, hidden]));
    expect_with_bias(NORM_AFTER, vec![hidden], expected);
    expected.push(("text_projection.weight".to_owned(), vec![config.projection_dim, hidden]));
    tower::expect("text_model", text.tower(), expected);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_token_speaks_for_the_text() {
        assert_eq!(end_position(&[10, 3, 99, 99, 99], 99), 2);
    }

    #[test]
    fn old_files_name_no_end_token_so_the_highest_id_counts() {
        assert_eq!(end_position(&[10, 2, 99, 0, 0], LEGACY_END), 2);
    }
}
