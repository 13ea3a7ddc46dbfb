//! The text side of a model.

use candle_core::{Device, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::siglip;
use rayon::prelude::*;

use super::config::ModelConfig;
use super::files::ClipFiles;
use super::tokenizer::TextTokenizer;
use super::towers::{self, Tower, unit_length};
use crate::error::{Computing, Result};
use crate::extractor::Feature;

/// Texts to features: the text tower of a CLIP or SigLIP model with its tokenizer.
pub struct TextEncoder {
    tokenizer: TextTokenizer,
    tower: Tower,
    device: Device,
}

impl TextEncoder {
    pub(super) fn new(tokenizer: TextTokenizer, tower: Tower, device: &Device) -> Self {
        Self { tokenizer, tower, device: device.clone() }
    }

    /// Token ids of texts, `[n, tokens]` u32; tokens beyond the context are cut off.
    ///
    /// # Errors
    /// When the tokenizer fails or the tensor cannot be made.
    pub fn token_ids(&self, texts: &[&str]) -> Result<Tensor> {
        let ids = texts.iter().map(|text| self.tokenizer.encode(text)).collect::<Result<Vec<_>>>()?.concat();
        let length = ids.len().checked_div(texts.len()).unwrap_or(0);
        Tensor::from_vec(ids, (texts.len(), length), &self.device).computing("token ids")
    }

    /// Features of token ids `[n, tokens]`, `[n, width]`, each of length 1.
    ///
    /// # Errors
    /// When an id is not in the vocabulary or the computation fails.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let features = self.tower.forward(ids);
        features.and_then(|features| unit_length(&features)).computing("text features")
    }

    /// One feature for each text, in order; each text is computed alone.
    ///
    /// # Errors
    /// When a text cannot be tokenized or the computation fails.
    pub fn features(&self, texts: &[&str]) -> Result<Vec<Feature>> {
        texts.par_iter().map(|text| self.feature(text)).collect()
    }

    fn feature(&self, text: &str) -> Result<Feature> {
        let embedded = self.embed(&self.token_ids(&[text])?)?;
        embedded.squeeze(0).and_then(|feature| feature.to_vec1()).computing("text features")
    }
}

pub(super) fn tokenizer(files: &ClipFiles, config: &ModelConfig) -> Result<TextTokenizer> {
    match config {
        ModelConfig::Clip(config) => TextTokenizer::clip(files, &config.text),
        ModelConfig::Siglip(config) => TextTokenizer::siglip(files, &config.text_config),
    }
}

pub(super) fn tower(weights: &VarBuilder, config: &ModelConfig) -> CandleResult<Tower> {
    Ok(match config {
        ModelConfig::Clip(config) => Box::new(towers::TextTower::load(weights, config)?),
        ModelConfig::Siglip(config) => Box::new(siglip::TextModel::new(&config.text_config, weights.pp("text_model"))?),
    })
}
