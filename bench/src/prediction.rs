//! One forward pass of the UNet.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::AdapterSet;
use catelier_pipelines::Result;
use catelier_pipelines::diffusion::NoiseSchedule;
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{Condition, UNet};
use catelier_pipelines::training::TrainError;

use crate::Workload;
use crate::inputs::{WorkloadSizes, condition};

/// The base's prediction for one batch of latents, without an adapter and without a graph.
#[derive(Debug)]
pub struct Prediction {
    unet: UNet,
    latents: Tensor,
    timesteps: Tensor,
    condition: Condition,
}

impl Prediction {
    /// Loads only the UNet.
    ///
    /// # Errors
    /// Those of [`UNet::load`], and [`catelier_pipelines::Error::InvalidSetting`] for sizes out of range.
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

    /// The loaded UNet.
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
