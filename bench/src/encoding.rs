//! The autoencoder, and the text encoders, each without the rest of the model.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::AdapterSet;
use catelier_pipelines::Result;
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{TextEncoder, Vae};
use catelier_pipelines::training::TrainError;

use crate::Workload;
use crate::inputs::WorkloadSizes;

/// Encodes a batch of images to latents and decodes them.
#[derive(Debug)]
pub struct Autoencoding {
    vae: Vae,
    images: Tensor,
}

impl Autoencoding {
    /// Loads only the autoencoder.
    ///
    /// # Errors
    /// Those of [`Vae::load`], and [`catelier_pipelines::Error::InvalidSetting`] for sizes out of range.
    pub fn new(files: &ModelFiles, sizes: WorkloadSizes, dtype: DType, device: &Device) -> Result<Self> {
        sizes.check()?;
        let vae = Vae::load(files, dtype, device)?;
        let images = sizes.image(vae.config().in_channels, vae.factor(), device)?;
        Ok(Self { vae, images })
    }
}

impl Workload for Autoencoding {
    fn run(&mut self) -> Result<(), TrainError> {
        let latents = self.vae.scale(&self.vae.encode(&self.images)?.mode())?;
        self.vae.decode(&latents)?;
        Ok(())
    }
}

/// Encodes a batch of prompts of full length with every text encoder of the base.
#[derive(Debug)]
pub struct TextEncoding {
    encoders: Vec<TextEncoder>,
    batch: usize,
}

impl TextEncoding {
    /// Loads the text encoders, without their tokenizers.
    ///
    /// # Errors
    /// Those of [`TextEncoder::load`], and [`catelier_pipelines::Error::InvalidSetting`] for a batch out of range.
    pub fn new(files: &ModelFiles, batch: usize, dtype: DType, device: &Device) -> Result<Self> {
        WorkloadSizes { latent: 1, batch }.check()?;
        let there = |component: &&str| files.exists(&format!("{component}/config.json"));
        let components = ["text_encoder"].into_iter().chain(Some("text_encoder_2").filter(there));
        let encoders = components.map(|component| TextEncoder::load(files, component, dtype, device));
        Ok(Self { encoders: encoders.collect::<Result<_>>()?, batch })
    }
}

impl Workload for TextEncoding {
    fn run(&mut self) -> Result<(), TrainError> {
        for encoder in &self.encoders {
            let config = encoder.config();
            let prompt = (0..config.max_position_embeddings).map(|token| (token % config.vocab_size) as u32).collect();
            encoder.encode(&vec![prompt; self.batch], &AdapterSet::base())?;
        }
        Ok(())
    }
}
