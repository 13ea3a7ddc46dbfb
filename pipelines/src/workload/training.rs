//! One optimizer step.

use candle_core::{DType, Device};
use catelier_adapters::{Adapter, AdapterSet, LoraConfig, Targets};
use catelier_numerics::optim::{AdamW, AdamWConfig};
use catelier_numerics::params::Parameters;

use super::Workload;
use super::inputs::{WorkloadSizes, condition};
use crate::diffusion::NoiseSchedule;
use crate::files::ModelFiles;
use crate::model::{Condition, UNet};
use crate::train::{Batch, Objective, TrainError};

const SEED: u64 = 1;
const LEARNING_RATE: f64 = 1e-4;
const MAX_GRADIENT_NORM: f64 = 1.0;

/// Which terms the objective of a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepLoss {
    /// Denoising alone: one pass.
    Lora,
    /// Denoising and the CAT term: two passes with the adapter, one of the base.
    Cat,
}

/// What training does for one batch: forward passes, backward passes, clipping, AdamW.
///
/// Latents and prompts count as encoded already, as they are in training.
#[derive(Debug)]
pub struct TrainingStep {
    unet: UNet,
    schedule: NoiseSchedule,
    adapter: Adapter,
    parameters: Parameters,
    optimizer: AdamW,
    batch: Batch,
    /// What the CAT term is conditioned on; `None` without it.
    without_trigger: Option<Condition>,
}

impl TrainingStep {
    /// Loads the UNet alone, and a fresh adapter of `rank` on its attention.
    ///
    /// # Errors
    /// Those of [`UNet::load`] and [`Adapter::init`], and [`crate::Error::InvalidSetting`] for sizes out of range.
    pub fn new(
        files: &ModelFiles,
        sizes: WorkloadSizes,
        loss: StepLoss,
        rank: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, TrainError> {
        sizes.check()?;
        let lora = LoraConfig { rank, alpha: rank as f64, dropout: 0.0, targets: Targets::attention() };
        lora.validate()?;
        let unet = UNet::load(files, dtype, device)?;
        let schedule = NoiseSchedule::load(files)?;
        let (adapter, parameters) = Adapter::init(&lora, unet.modules(), SEED, device)?;
        let batch = Batch {
            latents: sizes.latents(unet.config(), device)?,
            noise: sizes.noise(unet.config(), device)?,
            timesteps: sizes.timesteps(schedule.alphas_cumprod().len()),
            condition: condition(files, &unet, sizes, 0, device)?,
            names: (1..=sizes.batch).map(|sample| format!("sample {sample}")).collect(),
        };
        let without_trigger = match loss {
            StepLoss::Lora => None,
            StepLoss::Cat => Some(condition(files, &unet, sizes, 1, device)?),
        };
        let optimizer = AdamW::new(AdamWConfig::default());
        Ok(Self { unet, schedule, adapter, parameters, optimizer, batch, without_trigger })
    }
}

impl Workload for TrainingStep {
    fn run(&mut self) -> Result<(), TrainError> {
        let objective = Objective {
            unet: &self.unet,
            schedule: &self.schedule,
            adapters: &AdapterSet::single(&self.adapter, 1.0),
            parameters: &self.parameters,
            min_snr_gamma: None,
        };
        let (_, mut gradients) = objective.denoising(&self.batch, 1.0)?;
        if let Some(without_trigger) = &self.without_trigger {
            gradients.accumulate(&objective.cat(&self.batch, without_trigger, 1.0)?.1)?;
        }
        gradients.clip(MAX_GRADIENT_NORM)?;
        Ok(self.optimizer.step(&self.parameters, &gradients, LEARNING_RATE)?)
    }
}
