//! A whole base model: its configuration, its networks and its noise schedule.

mod config;
mod fingerprint;

use candle_core::{DType, Device};
use catelier_adapters::BaseFamily;

pub use config::{BaseConfig, EmptyNegative};

use crate::diffusion::NoiseSchedule;
use crate::error::Result;
use crate::models::files::ModelFiles;
use crate::models::{TextEncoders, Tiling, UNet, Vae};

/// A frozen base model, ready to predict, encode and decode.
#[derive(Debug)]
pub struct BaseModel {
    /// Predicts noise or velocity.
    pub unet: UNet,
    /// Encodes images into latents and decodes them.
    pub vae: Vae,
    /// Encodes prompts.
    pub text: TextEncoders,
    /// The noise schedule that the model was trained with.
    pub schedule: NoiseSchedule,
    /// The model's family of Stable Diffusion.
    pub family: BaseFamily,
    /// Width and height in pixels of the images that the model was trained on.
    pub resolution: usize,
    /// The condition that stands for an empty negative prompt.
    pub empty_negative: EmptyNegative,
    /// A hash of configurations and weights that identifies the model; see [`BaseConfig::fingerprint`].
    pub fingerprint: String,
    /// The name of the model: its folder, hub id, or `embedded`.
    pub name: String,
    device: Device,
}

impl BaseModel {
    /// Loads all components that `model_index.json` names, with weights converted to `dtype` on `device`.
    ///
    /// # Errors
    /// Those of [`BaseConfig::load`] and [`from_config`](Self::from_config).
    pub fn load(files: &ModelFiles, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_config(BaseConfig::load(files)?, files, dtype, device)
    }

    /// Loads the weights of a base whose configuration has been read already.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`](crate::Error::TensorMismatch) for weights that do not fit the configuration, those of
    /// [`ModelFiles::weights`] and of [`TextEncoders::load`].
    pub fn from_config(config: BaseConfig, files: &ModelFiles, dtype: DType, device: &Device) -> Result<Self> {
        config.expect_weights(files)?;
        Ok(Self {
            family: config.family(),
            resolution: config.resolution(),
            fingerprint: config.fingerprint(files)?,
            schedule: NoiseSchedule::from_config(&config.scheduler)?,
            empty_negative: config.empty_negative,
            text: TextEncoders::from_configs(config.text_encoders, files, dtype, device)?,
            vae: Vae::from_config(config.vae, files, "vae", dtype, device)?,
            unet: UNet::from_config(config.unet, files, dtype, device)?,
            name: config.name,
            device: device.clone(),
        })
    }

    /// The device of its weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Type of the UNet's activations.
    pub fn dtype(&self) -> DType {
        self.unet.dtype()
    }

    /// Every module that an adapter can change: the UNet's, then the text encoders'.
    pub fn modules(&self) -> Vec<catelier_adapters::ModuleInfo> {
        [self.unet.modules(), self.text.modules()].concat()
    }

    /// Norm of the weights of each output of the module at `path`, `[out]`: the initial magnitudes of a DoRA.
    ///
    /// # Errors
    /// An error if there is no such module.
    pub fn row_norms(&self, path: &str) -> candle_core::Result<candle_core::Tensor> {
        let has = |modules: &[catelier_adapters::ModuleInfo]| modules.iter().any(|module| module.path == path);
        match self.text.encoders().find(|encoder| has(encoder.modules())) {
            Some(encoder) => encoder.row_norms(path),
            None => self.unet.row_norms(path),
        }
    }

    /// Sets when large images are encoded and decoded in tiles; see [`Vae::with_tiling`].
    ///
    /// # Errors
    /// Those of [`Vae::with_tiling`].
    pub fn with_tiling(self, tiling: Tiling) -> Result<Self> {
        Ok(Self { vae: self.vae.with_tiling(tiling)?, ..self })
    }
}
