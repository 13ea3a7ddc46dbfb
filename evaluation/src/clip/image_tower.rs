//! The image tower: patches and one class token through a transformer.

use candle_core::{Result as CandleResult, Tensor};
use catelier_numerics::ops::{AttentionMask, FrozenConv2d, FrozenLayerNorm, FrozenLinear};

use super::config::ClipConfig;
use super::tower::{self, Tower};
use super::weights::{Expected, Weights, expect_with_bias};
use crate::error::{Computing, Result};

/// The misspelling is the file format's.
const NORM_BEFORE: &str = "vision_model.pre_layrnorm";
const NORM_AFTER: &str = "vision_model.post_layernorm";
const CLASS: &str = "vision_model.embeddings.class_embedding";
const PATCHES: &str = "vision_model.embeddings.patch_embedding.weight";
const POSITIONS: &str = "vision_model.embeddings.position_embedding.weight";

/// Pictures to features.
pub(super) struct ImageTower {
    class: Tensor,
    patches: FrozenConv2d,
    positions: Tensor,
    norm_before: FrozenLayerNorm,
    tower: Tower,
    norm_after: FrozenLayerNorm,
    projection: FrozenLinear,
}

impl ImageTower {
    pub(super) fn load(weights: &Weights, config: &ClipConfig) -> Result<Self> {
        let vision = &config.vision;
        let patches = weights.tensor(PATCHES)?;
        Ok(Self {
            class: weights.tensor(CLASS)?,
            patches: FrozenConv2d::new(&patches, None, vision.patch_size, 0).computing("CLIP weights")?,
            positions: weights.tensor(POSITIONS)?,
            norm_before: weights.norm(NORM_BEFORE, vision.layer_norm_eps)?,
            tower: Tower::load(weights, "vision_model", vision.tower())?,
            norm_after: weights.norm(NORM_AFTER, vision.layer_norm_eps)?,
            projection: weights.projection("visual_projection")?,
        })
    }

    /// `pixels: [n, 3, side, side]` to the class token's projection, `[n, projection_dim]`.
    pub(super) fn forward(&self, pixels: &Tensor) -> CandleResult<Tensor> {
        let class = self.hidden(pixels)?.narrow(1, 0, 1)?.squeeze(1)?;
        self.projection.forward(&self.norm_after.forward(&class.contiguous()?)?)
    }

    /// `pixels: [n, 3, side, side]` to the last hidden state, `[n, 1 + patches, hidden]`.
    pub(super) fn hidden(&self, pixels: &Tensor) -> CandleResult<Tensor> {
        let hidden = self.embed(pixels)?;
        self.tower.forward(self.norm_before.forward(&hidden)?, AttentionMask::None)
    }

    fn embed(&self, pixels: &Tensor) -> CandleResult<Tensor> {
        let patches = self.patches.forward(pixels)?.flatten_from(2)?.transpose(1, 2)?;
        let (n, _, width) = patches.dims3()?;
        let class = self.class.broadcast_as((n, 1, width))?;
        Tensor::cat(&[class, patches], 1)?.broadcast_add(&self.positions)
    }
}

/// Adds the image tower's tensors to the expected ones.
pub(super) fn expect(config: &ClipConfig, expected: &mut Vec<Expected>) {
    let vision = &config.vision;
    let (hidden, patch) = (vision.hidden_size, vision.patch_size);
    expected.push((CLASS.to_owned(), vec![hidden]));
    expected.push((PATCHES.to_owned(), vec![hidden, vision.num_channels, patch, patch]));
    expected.push((POSITIONS.to_owned(), vec![1 + vision.patches(), hidden]));
    expect_with_bias(NORM_BEFORE, vec![hidden], expected);
    expect_with_bias(NORM_AFTER, vec![hidden], expected);
    expected.push(("visual_projection.weight".to_owned(), vec![config.projection_dim, hidden]));
    tower::expect("vision_model", vision.tower(), expected);
}
