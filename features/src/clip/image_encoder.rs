//! The image side of a model.

use std::path::Path;

use candle_core::{Device, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::siglip;
use image::RgbImage;
use rayon::prelude::*;

use super::config::ModelConfig;
use super::files::ClipFiles;
use super::towers::{self, ImageSide, unit_length};
use super::weights::{self, Weights};
use crate::error::{Computing, Error, Result};
use crate::extractor::{Extractor, Feature, ImageFeatures};
use crate::preprocessing::Preprocessing;

/// Images in one pass of the tower. A product packs its weights anew for every pass, which for ViT-B/32 costs as much as the
/// product of one image; eight images share it, and a short list still occupies several threads.
const BATCH: usize = 8;

/// Images to features: the image tower of a CLIP or SigLIP model with its preprocessing.
pub struct ImageEncoder {
    extractor: Extractor,
    preprocessing: Preprocessing,
    tower: ImageSide,
    device: Device,
}

impl ImageEncoder {
    /// Loads the image side of a CLIP or SigLIP folder, which needs no tokenizer and no text tower: that of a style tower, for
    /// instance, which transformers calls `CLIPVisionModelWithProjection`.
    ///
    /// # Errors
    /// When `config.json`, `preprocessor_config.json` or `model.safetensors` is missing or malformed, a setting is not
    /// understood, or the image tower's weights do not fit the configuration (all offending tensors are listed).
    pub fn from_folder(folder: &Path, device: &Device) -> Result<Self> {
        Self::from_files(ClipFiles::folder(folder)?, device)
    }

    /// Loads the image side from the contents of the files.
    ///
    /// # Errors
    /// As [`ImageEncoder::from_folder`].
    pub fn from_files(files: ClipFiles, device: &Device) -> Result<Self> {
        let config = ModelConfig::of_images(&files.config)?;
        let parts = Parts::read(&files, &config)?;
        let tower = Weights::open(files.weights)?.build(device, |weights| tower(&weights, &config))?;
        Ok(parts.with_tower(tower, device))
    }

    /// The preprocessing that turns images into pixel tensors.
    #[must_use]
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// Features of preprocessed pixels, `[n, width]`, each of length 1.
    ///
    /// # Errors
    /// When the pixels have another shape or the computation fails.
    pub fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let features = self.tower.forward(pixels);
        features.and_then(|features| unit_length(&features)).computing("image features")
    }

    /// Number of the tower's blocks; 0 for SigLIP, whose tokens cannot be seen.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.tower.blocks()
    }

    /// The tokens of the images' patches after block `block`, counted from 1: `[n, patches, width]`.
    ///
    /// # Errors
    /// [`Error::NoTokens`] for a block that the tower does not have or show, and as
    /// [`image_features`](ImageFeatures::image_features).
    pub fn tokens(&self, images: &[&RgbImage], block: usize) -> Result<Tensor> {
        if block == 0 || block > self.blocks() {
            return Err(Error::NoTokens { name: self.extractor.name.clone(), block, blocks: self.blocks() });
        }
        let pixels = self.preprocessing.pixels(images, &self.device)?;
        self.tower.tokens(&pixels, block).computing("tokens of images")
    }

    /// Features of images whose first one has position `first` in its list.
    fn features(&self, first: usize, images: &[&RgbImage]) -> Result<Vec<Feature>> {
        let pixels =
            (first..).zip(images).map(|(index, image)| self.preprocessing.pixels_of(index, image, &self.device));
        let pixels = Tensor::stack(&pixels.collect::<Result<Vec<_>>>()?, 0).computing("pixels")?;
        self.embed(&pixels)?.to_vec2().computing("image features")
    }
}

impl ImageFeatures for ImageEncoder {
    fn extractor(&self) -> &Extractor {
        &self.extractor
    }

    /// Computes batches of eight images, in parallel on rayon's threads. The batches follow from the list alone, so the
    /// number of threads changes no bit.
    fn image_features(&self, images: &[&RgbImage]) -> Result<Vec<Feature>> {
        let batches = images.par_chunks(BATCH).enumerate();
        let features = batches.map(|(batch, images)| self.features(batch * BATCH, images));
        Ok(features.collect::<Result<Vec<_>>>()?.concat())
    }
}

/// An image encoder without its tower.
pub(super) struct Parts {
    extractor: Extractor,
    preprocessing: Preprocessing,
}

impl Parts {
    pub(super) fn read(files: &ClipFiles, config: &ModelConfig) -> Result<Self> {
        let preprocessing = Preprocessing::from_json(&files.preprocessor)?;
        preprocessing.require_output(config.image_size())?;
        let extractor = Extractor { name: files.name.clone(), sha256: weights::sha256(&files.weights) };
        Ok(Self { extractor, preprocessing })
    }

    pub(super) fn with_tower(self, tower: ImageSide, device: &Device) -> ImageEncoder {
        let Self { extractor, preprocessing } = self;
        ImageEncoder { extractor, preprocessing, tower, device: device.clone() }
    }
}

pub(super) fn tower(weights: &VarBuilder, config: &ModelConfig) -> CandleResult<ImageSide> {
    Ok(match config {
        ModelConfig::Clip(config) => Box::new(towers::ImageTower::load(weights, config)?),
        ModelConfig::Siglip(config) => {
            Box::new(siglip::VisionModel::new(&config.vision_config, true, weights.pp("vision_model"))?)
        }
    })
}
