//! What a training run will need, from the base's configurations alone.

use std::collections::BTreeMap;

use candle_core::Device;
use catelier_pipelines::models::base::BaseConfig;
use catelier_pipelines::models::{Recompute, encoding_bytes};
use catelier_pipelines::training::TrainConfig;
use catelier_pipelines::training::plan::{Bytes, DoesNotFit, Footprint, MemoryPlan, StepSizes, weight_bytes};
use serde::Serialize;

use crate::base::BaseSource;
use crate::error::{Error, Result};
use crate::images::load_training;
use crate::session::Session;
use crate::settings::{ResolvedTrain, TrainSettings};

/// A run's memory, and the operations of its steps.
#[derive(Debug, Clone)]
pub struct TrainPlan {
    /// Blocks that are recomputed in the backward pass.
    pub recompute: Recompute,
    /// `None` on a GPU, whose memory is not planned.
    pub memory: Option<MemoryPlan>,
    /// Bytes that the run may take; `None` for no limit.
    pub limit: Option<u64>,
    /// Operations of one optimizer step, at least.
    pub step_flops: u64,
}

impl TrainPlan {
    /// The plan of a run with `settings` on `device`.
    ///
    /// # Errors
    /// [`Error::User`] when the run does not fit into its limit, or the base's files are damaged.
    pub fn new(base: &BaseConfig, settings: &ResolvedTrain, device: &Device) -> Result<Self> {
        let config = settings.config();
        let footprint = Footprint::of_step(&base.unet, &sizes(base, settings, &config));
        let step_flops = (footprint.forward_flops as f64 * passes(&config)) as u64;
        if !device.is_cpu() {
            let all = settings.gradient_checkpointing == Some(true);
            let recompute = if all { Recompute::All } else { Recompute::Nothing };
            return Ok(Self { recompute, memory: None, limit: None, step_flops });
        }
        let limit = limit(settings);
        let side = settings.resolution;
        let memory = fit(base, settings, &footprint, limit)?.beside(encoding_bytes(&base.vae, (side, side)));
        match limit {
            Some(limit) if memory.peak > limit => Err(too_much(&DoesNotFit { needed: memory.peak, limit })),
            _ => Ok(Self { recompute: memory.recompute.clone(), memory: Some(memory), limit, step_flops }),
        }
    }

    /// Notes what was decided, if anything was.
    pub(crate) fn note(&self, session: &Session<'_>) {
        if let Some(memory) = &self.memory
            && !memory.recomputed.is_empty()
        {
            let (peak, recomputed, blocks) = (Bytes(memory.peak), memory.recomputed.len(), memory.blocks);
            session.note(format!("memory: about {peak}, {recomputed} of {blocks} blocks are recomputed"));
        }
    }
}

fn sizes(base: &BaseConfig, settings: &ResolvedTrain, config: &TrainConfig) -> StepSizes {
    let cells = settings.resolution / base.vae.factor();
    StepSizes {
        latent: (cells, cells),
        batch: config.batch,
        tokens: base.tokens(),
        kind: config.kind,
        rank: config.rank,
        targets: config.targets.clone(),
        cat: config.uses_cat(),
        dropout: config.dropout > 0.0,
        weights: settings.dtype.into(),
        trained_text_encoders: if config.train_text_encoder { base.text_encoders.clone() } else { BTreeMap::new() },
    }
}

/// Forward and backward passes of one optimizer step, at least; a backward pass through frozen weights costs about as much
/// as a forward pass.
fn passes(config: &TrainConfig) -> f64 {
    // With cached draws, the base's pass is made only when a draw is new.
    let of_cat = if config.cat_cached_draws > 0 { 2.0 } else { 3.0 };
    let cat = if config.uses_cat() { of_cat / config.cat_every as f64 } else { 0.0 };
    let prior = if config.uses_prior() { 2.0 } else { 0.0 };
    (2.0 + cat + prior) * config.accumulation as f64
}

/// Bytes that the run may take; `None` where it keeps all blocks, and where the system does not tell what is left.
fn limit(settings: &ResolvedTrain) -> Option<u64> {
    match settings.gradient_checkpointing {
        Some(false) => None,
        _ => settings.memory_limit.0.bytes(),
    }
}

fn fit(base: &BaseConfig, settings: &ResolvedTrain, footprint: &Footprint, limit: Option<u64>) -> Result<MemoryPlan> {
    let weights = footprint.weights + weight_bytes(base, settings.dtype.into());
    match settings.gradient_checkpointing {
        Some(true) => Ok(MemoryPlan::recomputing_all(footprint, weights)),
        _ => MemoryPlan::fit(footprint, weights, limit).map_err(|error| too_much(&error)),
    }
}

fn too_much(error: &DoesNotFit) -> Error {
    let hint = "lower `--resolution` or `--batch`, use `--dtype bf16`, or raise `--memory-limit`";
    Error::user(error.to_string(), hint)
}

/// What a training run would do, as `plan --json` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// Training images, mirrored ones counted.
    pub images: usize,
    /// The base's name.
    pub base: String,
    /// Side of the training images, in pixels.
    pub resolution: usize,
    /// Images in a forward pass.
    pub batch: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// Times that an image is seen, on average.
    pub epochs: f64,
    /// Operations of an optimizer step, at least, in units of 10⁹.
    pub gflop_per_step: f64,
    /// For the caller to fill in, who can measure the rate of operations; `null` on a GPU.
    pub seconds_per_step_at_least: Option<f64>,
    /// `null` on a GPU.
    pub memory: Option<PlannedMemory>,
}

/// The memory of a planned run.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedMemory {
    /// Most memory that the run will hold.
    pub peak_bytes: u64,
    /// Frozen weights among it.
    pub weight_bytes: u64,
    /// What it may hold; `null` for no limit.
    pub limit_bytes: Option<u64>,
    /// Module paths of the blocks that are recomputed in the backward pass, in the order the data meets them.
    pub recomputed_blocks: Vec<String>,
    /// Blocks that could be.
    pub blocks: usize,
    /// Operations that this costs in every backward pass, in units of 10⁹.
    pub extra_gflop_per_backward_pass: f64,
}

/// What [`train`](crate::train()) would do with the same settings; no weights are loaded.
///
/// # Errors
/// [`Error::User`] for settings that cannot train: images that cannot be read, memory that is not there.
pub fn plan(asked: TrainSettings, session: &Session<'_>) -> Result<(PlanReport, ResolvedTrain)> {
    let base = BaseSource::parse(asked.base_name())?.open(session)?;
    let settings = asked.resolve(&base.defaults())?;
    let images = load_training(&settings, session)?.frame_count();
    let plan = TrainPlan::new(&base.config, &settings, &session.open_device(settings.device)?)?;
    let seen = (settings.steps * settings.batch * settings.accumulation) as f64;
    let report = PlanReport {
        images,
        base: base.files.name().to_owned(),
        resolution: settings.resolution,
        batch: settings.batch,
        steps: settings.steps,
        epochs: seen / images.max(1) as f64,
        gflop_per_step: plan.step_flops as f64 / 1e9,
        seconds_per_step_at_least: None,
        memory: plan.memory.as_ref().map(|memory| PlannedMemory::new(memory, plan.limit)),
    };
    Ok((report, settings))
}

impl PlannedMemory {
    fn new(plan: &MemoryPlan, limit_bytes: Option<u64>) -> Self {
        Self {
            peak_bytes: plan.peak,
            weight_bytes: plan.weights,
            limit_bytes,
            recomputed_blocks: plan.recomputed.clone(),
            blocks: plan.blocks,
            extra_gflop_per_backward_pass: plan.extra_flops as f64 / 1e9,
        }
    }
}
