//! CLIP with both towers, as a measuring instrument.
//!
//! Reads the folder that transformers writes (`config.json`, `model.safetensors`,
//! `preprocessor_config.json` and the tokenizer's files) or the same files from memory. Weights
//! in f16, bf16 or f32; everything is computed in f32.
//!
//! Shapes: pixels `[n, channels, image_size, image_size]`, ids `[n, tokens]`, features
//! `[n, projection_dim]`.

mod config;
mod files;
mod image_tower;
mod preprocessing;
mod resize;
mod text_tower;
mod tower;
mod weights;

use std::path::Path;

use candle_core::{D, Device, Tensor};
use catelier_prompts::Tokenizer;
use image::RgbImage;

pub use config::{Activation, ClipConfig, TextConfig, VisionConfig};
pub use files::ClipFiles;
pub use preprocessing::Preprocessing;

use crate::error::{Computing, Result};
use crate::features::{Extractor, Feature, FeatureExtractor};
use image_tower::ImageTower;
use text_tower::TextTower;
use weights::Weights;

/// How many pictures or texts are computed at once.
const BATCH: usize = 32;

/// A CLIP model: pictures and texts become directions in one space.
pub struct Clip {
    extractor: Extractor,
    preprocessing: Preprocessing,
    tokenizer: Tokenizer,
    image_tower: ImageTower,
    text_tower: TextTower,
    logit_scale: f64,
    device: Device,
}

impl Clip {
    /// Loads a CLIP folder; the folder's name becomes the extractor's name.
    ///
    /// # Errors
    /// When a file is missing or malformed, a setting is not understood, or the weights do not fit
    /// the configuration (all offending tensors are listed).
    pub fn from_folder(folder: &Path, device: &Device) -> Result<Self> {
        Self::from_files(ClipFiles::folder(folder)?, device)
    }

    /// Loads CLIP from the contents of its files.
    ///
    /// # Errors
    /// As [`Clip::from_folder`].
    pub fn from_files(files: ClipFiles, device: &Device) -> Result<Self> {
        let config = ClipConfig::from_json(&files.config)?;
        let preprocessing = Preprocessing::from_json(&files.preprocessor)?;
        preprocessing.require_output(config.vision.image_size)?;
        config.text.require_room_for(files.tokenizer.max_length())?;
        let extractor = Extractor { name: files.name, sha256: weights::sha256(&files.weights) };
        let weights = Weights::open(files.weights, &config, device)?;
        Ok(Self {
            extractor,
            preprocessing,
            tokenizer: files.tokenizer,
            image_tower: ImageTower::load(&weights, &config)?,
            text_tower: TextTower::load(&weights, &config)?,
            logit_scale: weights.scalar("logit_scale")?.exp(),
            device: device.clone(),
        })
    }

    /// The factor that CLIP was trained to put on cosines before the softmax, `exp(logit_scale)`.
    #[must_use]
    pub fn logit_scale(&self) -> f64 {
        self.logit_scale
    }

    /// How pictures become pixel tensors.
    #[must_use]
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// Token ids of texts, `[n, tokens]` u32; what exceeds the context is cut off.
    ///
    /// # Errors
    /// When the tokenizer fails or the tensor cannot be made.
    pub fn token_ids(&self, texts: &[&str]) -> Result<Tensor> {
        let mut ids = Vec::new();
        for text in texts {
            let tokens = self.tokenizer.encode(text)?;
            ids.extend(tokens.ids);
        }
        let length = ids.len().checked_div(texts.len()).unwrap_or(0);
        Tensor::from_vec(ids, (texts.len(), length), &self.device).computing("token ids")
    }

    /// The image tower's last hidden state before its last norm, `[n, 1 + patches, hidden]`, from
    /// preprocessed pixels.
    ///
    /// # Errors
    /// When the pixels have another shape or the computation fails.
    pub fn image_hidden(&self, pixels: &Tensor) -> Result<Tensor> {
        self.image_tower.hidden(pixels).computing("image features")
    }

    /// Features of preprocessed pixels, `[n, projection_dim]`, each of length 1.
    ///
    /// # Errors
    /// When the pixels have another shape or the computation fails.
    pub fn embed_pixels(&self, pixels: &Tensor) -> Result<Tensor> {
        let features = self.image_tower.forward(pixels);
        features.and_then(|features| unit_length(&features)).computing("image features")
    }

    /// Features of token ids `[n, tokens]`, `[n, projection_dim]`, each of length 1.
    ///
    /// # Errors
    /// When an id is not in the vocabulary or the computation fails.
    pub fn embed_ids(&self, ids: &Tensor) -> Result<Tensor> {
        let features = self.text_tower.forward(ids);
        features.and_then(|features| unit_length(&features)).computing("text features")
    }
}

impl FeatureExtractor for Clip {
    fn extractor(&self) -> &Extractor {
        &self.extractor
    }

    fn image_features(&self, pictures: &[&RgbImage]) -> Result<Vec<Feature>> {
        let mut features = Vec::with_capacity(pictures.len());
        for batch in pictures.chunks(BATCH) {
            let pixels = self.preprocessing.pixels(batch, &self.device)?;
            features.extend(rows(&self.embed_pixels(&pixels)?)?);
        }
        Ok(features)
    }

    fn text_features(&self, texts: &[&str]) -> Result<Vec<Feature>> {
        let mut features = Vec::with_capacity(texts.len());
        for batch in texts.chunks(BATCH) {
            let ids = self.token_ids(batch)?;
            features.extend(rows(&self.embed_ids(&ids)?)?);
        }
        Ok(features)
    }
}

/// Scales each row to length 1, as transformers' `CLIPModel` does.
fn unit_length(features: &Tensor) -> candle_core::Result<Tensor> {
    features.broadcast_div(&features.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

fn rows(features: &Tensor) -> Result<Vec<Feature>> {
    features.to_vec2().computing("features")
}
