//! One optimizer step.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use catelier_adapters::{Adapter, AdapterSet, LoraConfig, Targets, UpdateKind};
use catelier_numerics::optim::{AdamW, AdamWConfig};
use catelier_numerics::params::Parameters;
use catelier_pipelines::diffusion::NoiseSchedule;
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{Recompute, UNet};
use catelier_pipelines::training::plan::{DoesNotFit, Footprint, MemoryPlan, StepSizes};
use catelier_pipelines::training::{Batch, Captions, CatTarget, Objective, TrainError};

use crate::Workload;
use crate::inputs::{WorkloadSizes, condition};

const SEED: u64 = 1;
const LEARNING_RATE: f64 = 1e-4;
const MAX_GRADIENT_NORM: f64 = 1.0;

/// The terms in the objective of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepLoss {
    /// The denoising term: one pass.
    Lora,
    /// The denoising term and the CAT term: two passes with the adapter, one of the base.
    Cat,
}

/// The training work for one batch: forward passes, backward passes, clipping, AdamW.
///
/// Latents and prompts are already encoded, as in a training run.
#[derive(Debug)]
pub struct TrainingStep {
    unet: UNet,
    rank: usize,
    schedule: NoiseSchedule,
    adapter: Adapter,
    parameters: Parameters,
    optimizer: AdamW,
    batch: Batch<'static>,
    /// Captions of the CAT term; `None` without it.
    without_trigger: Option<CatTarget<'static>>,
}

impl TrainingStep {
    /// Loads only the UNet, and initialises an adapter of `rank` on its attention.
    ///
    /// # Errors
    /// Those of [`UNet::load`] and [`Adapter::init`], and [`catelier_pipelines::Error::InvalidSetting`] for sizes out
    /// of range.
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
            targets: vec![],
            latents: sizes.latents(unet.config(), device)?,
            noise: sizes.noise(unet.config(), device)?,
            timesteps: sizes.timesteps(schedule.alphas_cumprod().len()),
            captions: Captions { condition: condition(files, &unet, sizes, 0, device)?, keys: None, prompts: None },
            names: (1..=sizes.batch).map(|sample| format!("sample {sample}")).collect(),
        };
        let without_trigger = match loss {
            StepLoss::Lora => None,
            StepLoss::Cat => {
                let condition = condition(files, &unet, sizes, 1, device)?;
                let keys = Some(unet.cross_attention_kv(&condition.context, &AdapterSet::base())?);
                let captions = Captions { condition, keys, prompts: None };
                Some(CatTarget { captions, noise_pred_base: None })
            }
        };
        let optimizer = AdamW::new(AdamWConfig::default());
        Ok(Self { unet, rank, schedule, adapter, parameters, optimizer, batch, without_trigger })
    }

    /// Chooses the blocks to recompute so that the step fits into `limit` bytes; `None` recomputes no block. `dtype` is
    /// the type of the weights.
    ///
    /// # Errors
    /// [`DoesNotFit`] if the step does not fit with every block recomputed.
    pub fn plan(&mut self, dtype: DType, limit: Option<u64>) -> Result<MemoryPlan, DoesNotFit> {
        let footprint = Footprint::of_step(self.unet.config(), &self.sizes(dtype));
        let plan = MemoryPlan::fit(&footprint, footprint.weights, limit)?;
        self.recompute(plan.recompute.clone());
        Ok(plan)
    }

    /// Sets the blocks that every later step recomputes in its backward pass.
    pub fn recompute(&mut self, recompute: Recompute) {
        self.unet.recompute(recompute);
    }

    fn objective<'a>(&'a self, adapters: &'a AdapterSet) -> Objective<'a> {
        let Self { unet, schedule, parameters, .. } = self;
        Objective { unet, schedule, adapters, parameters, min_snr_gamma: None }
    }

    fn sizes(&self, weights: DType) -> StepSizes {
        let (latents, context) = (self.batch.latents.dims(), self.batch.captions.condition.context.dims());
        StepSizes {
            latent: (latents[2], latents[3]),
            batch: latents[0],
            tokens: context[1],
            kind: UpdateKind::Lora,
            rank: self.rank,
            targets: Targets::attention(),
            cat: self.without_trigger.is_some(),
            dropout: false,
            weights,
            trained_text_encoders: BTreeMap::new(),
        }
    }
}

impl Workload for TrainingStep {
    fn run(&mut self) -> Result<(), TrainError> {
        let adapters = AdapterSet::single(&self.adapter, 1.0);
        let objective = self.objective(&adapters);
        let mut gradients = match &self.without_trigger {
            None => objective.denoising(&self.batch, 1.0)?.1,
            Some(target) => objective.denoising_and_cat(&self.batch, target, 1.0, 1.0)?.gradients,
        };
        gradients.clip(MAX_GRADIENT_NORM)?;
        Ok(self.optimizer.step(&self.parameters, &gradients, LEARNING_RATE)?)
    }
}

#[cfg(test)]
mod tests;
