//! One forward pass of the UNet.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::AdapterSet;

use super::Workload;
use super::inputs::{WorkloadSizes, condition};
use crate::diffusion::NoiseSchedule;
use crate::error::Result;
use crate::files::ModelFiles;
use crate::model::{Condition, UNet};
use crate::train::TrainError;

/// The base's prediction for one batch of latents, without adapter and without graph.
#[derive(Debug)]
pub struct Prediction {
    unet: UNet,
    latents: Tensor,
    timesteps: Tensor,
    condition: Condition,
}

impl Prediction {
    /// Loads the UNet alone.
    ///
    /// # Errors
    /// Those of [`UNet::load`], and [`crate::Error::InvalidSetting`] for sizes out of range.
    pub fn new(files: &ModelFiles, sizes: WorkloadSizes, dtype: DType, device: &Device) -> Result<Self> {
        sizes.check()?;
        let unet = UNet::load(files, dtype, device)?;
        Ok(Self {
            latents: sizes.latents(unet.config(), device)?,
            timesteps: Tensor::new(
                sizes.timesteps(NoiseSchedule::load(files)?.alphas_cumprod().len()).as_slice(),
                device,
            )?,
            condition: condition(files, &unet, sizes, 0, device)?,
            unet,
        })
    }

    /// The model at work.
    pub fn unet(&self) -> &UNet {
        &self.unet
    }
}

impl Workload for Prediction {
    fn run(&mut self) -> Result<(), TrainError> {
        self.unet.predict(&self.latents, &self.timesteps, &self.condition, &AdapterSet::base())?;
        Ok(())
    }
}
