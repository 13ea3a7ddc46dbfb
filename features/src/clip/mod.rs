//! CLIP and SigLIP as feature extractors.
//!
//! Reads the folder that transformers writes (`config.json`, `model.safetensors`, `preprocessor_config.json` and the
//! tokenizer's files) or the same files from memory. Weights are f16, bf16 or f32; everything is computed in f32, and
//! no gradient is kept.
//!
//! Shapes: pixels `[n, 3, image_size, image_size]`, ids `[n, tokens]`, features `[n, width]`, where
//! `width` is CLIP's `projection_dim` and SigLIP's `hidden_size`.

mod config;
mod files;
mod image_encoder;
mod text_encoder;
mod tokenizer;
mod towers;
mod weights;

use std::path::Path;

use candle_core::Device;
use image::RgbImage;

pub use files::ClipFiles;
pub use image_encoder::ImageEncoder;
pub use text_encoder::TextEncoder;

use crate::error::Result;
use crate::extractor::{Extractor, Feature, ImageFeatures, TextFeatures};
use config::ModelConfig;
use weights::Weights;

/// A CLIP or SigLIP model, which maps images and texts to directions in one space.
pub struct Clip {
    /// The image side.
    pub images: ImageEncoder,
    /// The text side.
    pub texts: TextEncoder,
}

impl Clip {
    /// Loads a CLIP or SigLIP folder; the folder's name becomes the extractor's name.
    ///
    /// # Errors
    /// When a file is missing or malformed, a setting is not understood, or the weights do not fit
    /// the configuration (all offending tensors are listed).
    pub fn from_folder(folder: &Path, device: &Device) -> Result<Self> {
        Self::from_files(ClipFiles::folder(folder)?, device)
    }

    /// Loads a model from the contents of its files.
    ///
    /// # Errors
    /// As [`Clip::from_folder`].
    pub fn from_files(files: ClipFiles, device: &Device) -> Result<Self> {
        let config = ModelConfig::from_json(&files.config)?;
        let images = image_encoder::Parts::read(&files, &config)?;
        let tokenizer = text_encoder::tokenizer(&files, &config)?;
        let weights = Weights::open(files.weights)?;
        let (image_tower, text_tower) = weights.build(device, |weights| {
            Ok((image_encoder::tower(&weights, &config)?, text_encoder::tower(&weights, &config)?))
        })?;
        Ok(Self {
            images: images.with_tower(image_tower, device),
            texts: TextEncoder::new(tokenizer, text_tower, device),
        })
    }
}

impl ImageFeatures for Clip {
    fn extractor(&self) -> &Extractor {
        self.images.extractor()
    }

    fn image_features(&self, images: &[&RgbImage]) -> Result<Vec<Feature>> {
        self.images.image_features(images)
    }
}

impl TextFeatures for Clip {
    fn text_features(&self, texts: &[&str]) -> Result<Vec<Feature>> {
        self.texts.features(texts)
    }
}
