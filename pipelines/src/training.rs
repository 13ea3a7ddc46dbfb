//! The training loop: it trains an adapter on a frozen base, with the CAT term or without.
//!
//! One optimizer step: take the next images; draw noise and timesteps as functions of (seed, step, sample); compute the
//! denoising term under the captions with the trigger and the CAT term under the captions without it, on the same noisy
//! latents; go backward; refuse a parameter without a finite gradient; clip; AdamW; update the moving average; report.
//! If the run trains the text encoders, the step encodes the captions of its adapted predictions as well.

mod captions;
mod config;
mod dataset;
mod drift;
mod error;
mod fingerprint;
mod knowledge;
mod modules;
mod observer;
mod optimizer;
pub mod plan;
mod start;
mod state;
mod step;

use std::collections::BTreeMap;

use candle_core::Tensor;
use catelier_adapters::{Adapter, AdapterDropout, AdapterSet, Component};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::params::{Gradients, Parameters};
pub use catelier_numerics::schedule::Curve;

pub use captions::{Captions, EncodedCaption, Prompts};
pub use config::{LatentDraw, LossKind, TrainConfig};
pub use dataset::{EncodedDataset, EncodedSample};
pub use drift::HeldOutPrompts;
pub use error::TrainError;
pub use knowledge::{Knowledge, Proxies};
pub use observer::{Control, StepReport, TrainObserver};
pub use optimizer::Optimizer;
pub use start::StartingPoint;
pub use state::{Resumed, StateFolder, UnusableState};
pub use step::{Batch, CatTarget, DenoisingAndCat, Objective};

use crate::models::TextEncoders;
use crate::models::base::BaseModel;
use dataset::BatchSampler;
use drift::DriftProbe;
use fingerprint::RunFingerprint;
use start::Proximal;
use step::{Terms, mean};

/// The random streams that one batch is drawn from.
struct Streams {
    latent: Stream,
    noise: Stream,
    timestep: Stream,
}

// A stream's name is hashed into the seed of its draws, so another name would change the bits of every run.
const TRAINING: Streams =
    Streams { latent: Stream("train/latent"), noise: Stream("train/noise"), timestep: Stream("train/timestep") };
const CLASS: Streams = Streams {
    latent: Stream("train/class-latent"),
    noise: Stream("train/class-noise"),
    timestep: Stream("train/class-timestep"),
};
const EMPTY: Stream = Stream("train/empty-caption");
const CACHED_DRAW: Stream = Stream("train/bank");

/// Index of a draw: the same index gives the same noise and timestep, so cached predictions of the base are stored
/// under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct DrawIndex {
    draw: u64,
    sample: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Finished,
    /// The observer asked to stop; the state after this step is saved.
    Stopped {
        /// Optimizer steps done.
        step: usize,
        /// The observer's reason.
        reason: String,
    },
}

/// The contribution of one forward and backward pass to an optimizer step.
struct Part<'a> {
    batch: Batch<'a>,
    terms: Terms,
    gradients: Gradients,
    base_predictions: Vec<(DrawIndex, Tensor)>,
}

/// Latents of a sample, scaled, and unit noise for them, both `[1, 4, height/8, width/8]`, drawn at `index`.
fn draw_latents(
    base: &BaseModel,
    noise: &Noise,
    latents: LatentDraw,
    sample: &EncodedSample,
    index: DrawIndex,
    streams: &Streams,
) -> Result<(Tensor, Tensor), TrainError> {
    let shape = sample.moments.mean.shape();
    let normal = |stream| noise.normal(stream, index.draw, index.sample, shape, base.device());
    let drawn = match latents {
        LatentDraw::Mode => sample.moments.mode(),
        LatentDraw::Sample => sample.moments.sample(&normal(streams.latent)?)?,
    };
    Ok((base.vae.scale(&drawn)?, normal(streams.noise)?))
}

/// A freshly initialised adapter over trainable parameters.
fn fresh(base: &BaseModel, config: &TrainConfig) -> Result<(Adapter, Parameters), TrainError> {
    let modules = modules::trained_modules(base, config)?;
    let row_norms = |path: &str| base.row_norms(path);
    Ok(Adapter::init_kind(config.kind, &config.lora(), &modules, row_norms, config.seed, base.device())?)
}

/// Knowledge that a run is trained towards.
struct Towards {
    proxies: Proxies,
    /// Predictions by proxy item, `[1, 4, height/8, width/8]`.
    targets: BTreeMap<DrawIndex, Tensor>,
}

/// A training run: one base, one adapter, one dataset.
pub struct Trainer<'a> {
    base: &'a BaseModel,
    config: TrainConfig,
    dataset: &'a EncodedDataset,
    sampler: BatchSampler,
    /// Where the run started, if it did not start afresh.
    start: Option<StartingPoint>,
    adapter: Adapter,
    proximal: Option<Proximal>,
    optimizer: Optimizer,
    states: StateFolder,
    fingerprint: RunFingerprint,
    probe: Option<DriftProbe>,
    /// What the run is trained towards on proxy items.
    towards: Option<Towards>,
    /// Predictions of the base for the cached draws that have occurred, by index.
    cached: BTreeMap<DrawIndex, Tensor>,
    noise: Noise,
    step: usize,
    last_loss: f64,
}

impl<'a> Trainer<'a> {
    /// A run at step 0 with a freshly initialised adapter, which changes no prediction yet.
    ///
    /// # Errors
    /// A setting is out of range, the targets match no module, or the objective needs class images and there are none.
    pub fn new(
        base: &'a BaseModel,
        config: TrainConfig,
        dataset: &'a EncodedDataset,
        states: StateFolder,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let fresh = fresh(base, &config)?;
        let fingerprint = RunFingerprint::new(base, dataset, None, &config)?;
        Self::with_adapter(base, config, dataset, states, fingerprint, fresh)
    }

    /// The freshly initialised adapter of a run with these settings.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn fresh_adapter(base: &BaseModel, config: &TrainConfig) -> Result<Adapter, TrainError> {
        config.validate()?;
        Ok(fresh(base, config)?.0.detached())
    }

    /// A run at step 0 that goes on from `start`, as the next round of a federation does. `start` decides kind, rank
    /// and alpha, whatever `config` says; the targets of `config` must select exactly its modules.
    ///
    /// # Errors
    /// [`TrainError::StartMismatch`] for other modules, [`TrainError::NothingToTrain`], and the errors of
    /// [`Trainer::new`].
    pub fn from_start(
        base: &'a BaseModel,
        config: TrainConfig,
        dataset: &'a EncodedDataset,
        states: StateFolder,
        start: StartingPoint,
    ) -> Result<Self, TrainError> {
        let adapter = &start.adapter;
        let config = TrainConfig {
            kind: adapter.uniform_kind().unwrap_or(config.kind),
            rank: adapter.uniform_rank().unwrap_or(config.rank),
            alpha: adapter.uniform_alpha().unwrap_or(config.alpha),
            ..config
        };
        config.validate()?;
        start.validate()?;
        modules::check_start(base, &config, adapter)?;
        let fingerprint = RunFingerprint::new(base, dataset, Some(&start), &config)?;
        let trainable = adapter.trainable_but(base.device(), |name| start.frozen.contains(name))?;
        let proximal = Proximal::new(start.proximal, &trainable.1)?;
        let trainer = Self::with_adapter(base, config, dataset, states, fingerprint, trainable)?;
        Ok(Self { start: Some(start), proximal, ..trainer })
    }

    fn with_adapter(
        base: &'a BaseModel,
        config: TrainConfig,
        dataset: &'a EncodedDataset,
        states: StateFolder,
        fingerprint: RunFingerprint,
        (adapter, parameters): (Adapter, Parameters),
    ) -> Result<Self, TrainError> {
        Ok(Self {
            sampler: BatchSampler::new(dataset, &config)?,
            optimizer: Optimizer::new(parameters, &config)?,
            noise: Noise::new(config.seed),
            base,
            config,
            dataset,
            start: None,
            adapter,
            proximal: None,
            states,
            fingerprint,
            probe: None,
            towards: None,
            cached: BTreeMap::new(),
            step: 0,
            last_loss: f64::NAN,
        })
    }

    /// Trains towards `knowledge` on the proxy items, the first samples of the dataset, and on the other samples as always.
    /// A run is resumed with the knowledge that it was saved with.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for more proxies than the dataset has samples; any error of the model.
    pub fn towards(mut self, knowledge: &Knowledge) -> Result<Self, TrainError> {
        let proxies = knowledge.proxies();
        if proxies.samples > self.dataset.samples.len() || proxies.draws == 0 {
            let rule = format!("must be the first of {} samples, at one draw or more", self.dataset.samples.len());
            return Err(TrainError::setting("proxies", proxies.samples, rule));
        }
        self.fingerprint = self.fingerprint.beside(&knowledge.digest()?);
        self.towards = Some(Towards { proxies, targets: knowledge.targets(self.base, self.dataset)? });
        Ok(self)
    }

    /// Measures the drift of predictions under `prompts` after each step for which the observer wants it.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) if `is_stopped` between two prompts; any error of the model.
    pub fn measure_drift(&mut self, prompts: &HeldOutPrompts, is_stopped: &dyn Fn() -> bool) -> Result<(), TrainError> {
        self.probe = Some(DriftProbe::new(self.base, self.dataset, prompts, self.config.seed, is_stopped)?);
        Ok(())
    }

    /// Resumes from the newest saved state that is whole and belongs to this run. The rest of the run gives the same bits
    /// as a run without interruption.
    ///
    /// # Errors
    /// [`TrainError::NothingToResume`], [`TrainError::NoUsableState`]; then the trainer is not to be used.
    pub fn resume(&mut self) -> Result<Resumed, TrainError> {
        let resumed = self.states.restore(&self.fingerprint, &mut self.optimizer)?;
        self.step = resumed.step;
        Ok(resumed)
    }

    /// Sixteen hexadecimal digits that name the run: a function of base, images, start adapter and all settings but the
    /// number of steps.
    pub fn run_id(&self) -> String {
        self.fingerprint.run_id()
    }

    /// Optimizer steps done so far.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The settings of the run; kind, rank and alpha are those of the adapter in training.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The adapter as it would be saved now, without a graph: the moving average if the run keeps one, else the trained
    /// parameters.
    ///
    /// # Errors
    /// [`TrainError::Adapters`] when the average does not fit the adapter.
    pub fn adapter(&self) -> Result<Adapter, TrainError> {
        match (self.optimizer.average(), &self.start) {
            (None, _) => Ok(self.adapter.detached()),
            (Some(average), None) => Ok(self.adapter.with_parameters(average)?.detached()),
            (Some(average), Some(start)) => Ok(start.with_trained(average)?.detached()),
        }
    }

    /// Trains until the last step or until the observer asks to stop, and saves the state whenever the observer asks.
    ///
    /// # Errors
    /// [`TrainError::LossNotFinite`], after saving the last good state; any error of the model, the optimizer, the disk
    /// or the observer.
    pub fn run(&mut self, observer: &mut dyn TrainObserver) -> Result<Ending, TrainError> {
        while self.step < self.config.steps {
            let mut report = self.optimizer_step()?;
            if observer.wants_drift(self.step) {
                report.drift = self.drift(&|| observer.is_stopped())?;
            }
            let mut control = observer.on_step(&report)?;
            if observer.wants_adapter(self.step) {
                control = control.or(observer.on_adapter(self.step, &self.adapter()?)?);
            }
            if control != Control::Continue {
                self.save()?;
            }
            match control {
                Control::Stop(reason) if self.step < self.config.steps => {
                    return Ok(Ending::Stopped { step: self.step, reason });
                }
                _ => {}
            }
        }
        Ok(Ending::Finished)
    }

    /// Saves the full state after the current step.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn save(&self) -> Result<(), TrainError> {
        self.states.save(self.step, &self.fingerprint, &self.optimizer)
    }

    fn optimizer_step(&mut self) -> Result<StepReport, TrainError> {
        let (terms, mut gradients) = self.gradients()?;
        let mut loss = terms.total(self.config.cat_weight * self.config.cat_every as f64, self.config.prior_weight);
        if let Some(proximal) = &self.proximal {
            let (value, gradient) = proximal.term(self.optimizer.parameters())?;
            loss += value;
            gradients.accumulate(&gradient)?;
        }
        let rate_of = |component| self.optimizer.learning_rate(component, self.step);
        let learning_rate = rate_of(Component::Unet);
        let text_encoder_learning_rate = self.config.train_text_encoder.then(|| rate_of(Component::TextEncoder));
        let gradient_norm = self.optimizer.step(self.step, gradients)?;
        self.step += 1;
        self.last_loss = loss;
        Ok(StepReport {
            step: self.step,
            steps: self.config.steps,
            loss,
            denoising: mean(&terms.denoising),
            cat: (!terms.cat.is_empty()).then(|| mean(&terms.cat)),
            prior: self.config.uses_prior().then(|| mean(&terms.prior)),
            drift: None,
            gradient_norm,
            learning_rate,
            text_encoder_learning_rate,
        })
    }

    /// The terms of one optimizer step, and the gradient averaged over its forward passes.
    fn gradients(&mut self) -> Result<(Terms, Gradients), TrainError> {
        let share = 1.0 / self.config.accumulation as f64;
        let mut terms = Terms::default();
        let mut gradients = Gradients::default();
        for micro_step in 0..self.config.accumulation {
            let draw = self.step * self.config.accumulation + micro_step;
            self.accumulate(draw, share, &mut terms, &mut gradients)?;
        }
        Ok((terms, gradients))
    }

    fn accumulate(
        &mut self,
        draw: usize,
        share: f64,
        terms: &mut Terms,
        gradients: &mut Gradients,
    ) -> Result<(), TrainError> {
        let adapters = self.adapters(draw);
        let objective = Objective {
            unet: &self.base.unet,
            schedule: &self.base.schedule,
            adapters: &adapters,
            parameters: self.optimizer.parameters(),
            min_snr_gamma: self.config.min_snr_gamma,
        };
        let mut parts = vec![self.training_part(&objective, draw, share)?];
        if self.config.uses_prior() {
            parts.push(self.class_part(&objective, draw, share)?);
        }
        for part in parts {
            self.refuse_not_finite(&part.terms, &part.batch)?;
            self.cached.extend(part.base_predictions);
            gradients.accumulate(&part.gradients)?;
            terms.extend(part.terms);
        }
        Ok(())
    }

    /// The denoising term of the training images, and the CAT term if this batch has one.
    fn training_part(&self, objective: &Objective<'_>, draw: usize, share: f64) -> Result<Part<'a>, TrainError> {
        let picked = self.sampler.samples(self.dataset, draw, self.config.batch);
        let indices = self.draw_indices(&picked, draw);
        let samples: Vec<&EncodedSample> = picked.iter().map(|(_, sample)| *sample).collect();
        let batch = self.batch(&samples, &indices, &TRAINING)?;
        let Some(cat_weight) = self.config.cat_weight_at(draw) else {
            let (denoising, gradients) = objective.denoising(&batch, share)?;
            let terms = Terms { denoising, ..Terms::default() };
            return Ok(Part { batch, terms, gradients, base_predictions: vec![] });
        };
        let target = self.cat_target(&samples, &indices, draw)?;
        let both = objective.denoising_and_cat(&batch, &target, share, share * cat_weight)?;
        let base_predictions = self.predictions_to_cache(&indices, &both.noise_pred_base)?;
        let terms = Terms { denoising: both.denoising, cat: both.cat, prior: vec![] };
        Ok(Part { batch, terms, gradients: both.gradients, base_predictions })
    }

    /// The denoising term of the class images.
    fn class_part(&self, objective: &Objective<'_>, draw: usize, share: f64) -> Result<Part<'a>, TrainError> {
        let picked = self.sampler.class_samples(self.dataset, draw, self.config.batch);
        let indices: Vec<_> = (0..picked.len() as u64).map(|sample| DrawIndex { draw: draw as u64, sample }).collect();
        let batch = self.batch(&picked, &indices, &CLASS)?;
        let (prior, gradients) = objective.denoising(&batch, share * self.config.prior_weight)?;
        Ok(Part { batch, terms: Terms { prior, ..Terms::default() }, gradients, base_predictions: vec![] })
    }

    fn adapters(&self, draw: usize) -> AdapterSet {
        let mut adapters = AdapterSet::single(&self.adapter, 1.0);
        if let Some(merged) = self.start.as_ref().and_then(|start| start.merged.as_ref()) {
            adapters.push(merged, 1.0);
        }
        match self.config.dropout {
            0.0 => adapters,
            probability => {
                adapters.with_dropout(AdapterDropout { probability, seed: self.config.seed, step: draw as u64 })
            }
        }
    }

    /// The text encoders if the run trains them.
    fn trained_encoders(&self) -> Option<&'a TextEncoders> {
        self.config.train_text_encoder.then_some(&self.base.text)
    }

    /// The draw index of each picked sample. Without cached draws it is the batch and the position in the batch; with
    /// them it is one of the cached draws, chosen at random, and the sample's index in the dataset.
    fn draw_indices(&self, picked: &[(usize, &EncodedSample)], draw: usize) -> Vec<DrawIndex> {
        let uniform = |place| self.noise.uniforms(CACHED_DRAW, draw as u64, place, 1)[0];
        let proxies = self.towards.as_ref().map(|towards| towards.proxies);
        let index = |(place, (sample, _)): (u64, &(usize, &EncodedSample))| {
            let proxy = proxies.and_then(|proxies| proxies.item(*sample, uniform(place)));
            proxy.unwrap_or_else(|| match self.config.cat_cached_draws {
                0 => DrawIndex { draw: draw as u64, sample: place },
                count => {
                    let draw = ((uniform(place) * count as f64) as u64).min(count as u64 - 1);
                    DrawIndex { draw, sample: *sample as u64 }
                }
            })
        };
        (0..).zip(picked).map(index).collect()
    }

    /// Latents, noise, timesteps and captions of the `picked` samples, drawn from `streams` at their `indices`.
    fn batch(
        &self,
        picked: &[&EncodedSample],
        indices: &[DrawIndex],
        streams: &Streams,
    ) -> Result<Batch<'a>, TrainError> {
        let (mut latents, mut noise, mut timesteps) = (vec![], vec![], self.timesteps(indices, streams.timestep));
        for (row, (index, sample)) in indices.iter().zip(picked).enumerate() {
            // Proxy items are drawn from a seed on which all agree, and not from the run's own.
            let (source, draw) = match self.proxies_of(index) {
                Some(proxies) => (Noise::new(proxies.seed), LatentDraw::Mode),
                None => (self.noise, self.config.latents),
            };
            let (own, unit) = draw_latents(self.base, &source, draw, sample, *index, streams)?;
            latents.push(own);
            noise.push(unit);
            if self.proxies_of(index).is_some() {
                timesteps[row] = knowledge::timestep(self.base, &source, *index);
            }
        }
        let captions: Vec<&EncodedCaption> = picked.iter().map(|sample| &sample.with_trigger).collect();
        Ok(Batch {
            latents: Tensor::cat(&latents, 0)?,
            noise: Tensor::cat(&noise, 0)?,
            timesteps,
            targets: self.targets(indices),
            captions: Captions::cat(&captions, self.trained_encoders())?,
            names: picked.iter().map(|sample| sample.name.clone()).collect(),
        })
    }

    /// The proxies if this draw is one of theirs.
    fn proxies_of(&self, index: &DrawIndex) -> Option<Proxies> {
        self.towards.as_ref().map(|towards| towards.proxies).filter(|proxies| proxies.have(index))
    }

    /// The predictions that take the place of the schedule's targets, by row.
    fn targets(&self, indices: &[DrawIndex]) -> Vec<(usize, Tensor)> {
        let Some(towards) = &self.towards else { return Vec::new() };
        let known = |(row, index): (usize, &DrawIndex)| Some((row, towards.targets.get(index)?.clone()));
        indices.iter().enumerate().filter_map(known).collect()
    }

    fn timesteps(&self, indices: &[DrawIndex], stream: Stream) -> Vec<u32> {
        let (schedule, sampling) = (&self.base.schedule, self.config.timestep_sampling);
        let draw = |draw, samples| sampling.draw(schedule, &self.noise, stream, draw, samples);
        match (self.config.cat_cached_draws, indices) {
            // Stratified timesteps are drawn for the whole batch at once.
            (0, [first, ..]) => draw(first.draw, 0..indices.len() as u64),
            _ => indices.iter().flat_map(|index| draw(index.draw, index.sample..index.sample + 1)).collect(),
        }
    }

    /// The target of the CAT term: each sample's caption without the trigger, or the empty caption for a random share
    /// of samples.
    fn cat_target(
        &self,
        picked: &[&'a EncodedSample],
        indices: &[DrawIndex],
        draw: usize,
    ) -> Result<CatTarget<'a>, TrainError> {
        let choose = |(place, sample): (usize, &&'a EncodedSample)| {
            let uniform = self.noise.uniforms(EMPTY, draw as u64, place as u64, 1)[0];
            if uniform < self.config.cat_empty_share { &self.dataset.empty } else { &sample.without_trigger }
        };
        let captions: Vec<&EncodedCaption> = picked.iter().enumerate().map(choose).collect();
        let cached: Option<Vec<&Tensor>> = indices.iter().map(|index| self.cached.get(index)).collect();
        let captions = Captions::cat(&captions, self.trained_encoders())?;
        let noise_pred_base = cached.map(|rows| Tensor::cat(&rows, 0)).transpose()?;
        Ok(CatTarget { captions, noise_pred_base })
    }

    /// The base's predictions for those draws of this batch that are not cached yet.
    fn predictions_to_cache(
        &self,
        indices: &[DrawIndex],
        noise_pred_base: &Tensor,
    ) -> Result<Vec<(DrawIndex, Tensor)>, TrainError> {
        if self.config.cat_cached_draws == 0 {
            return Ok(vec![]);
        }
        // Rows are copied: a view would hold the predictions of the whole batch in memory.
        let new = indices.iter().enumerate().filter(|(_, index)| !self.cached.contains_key(index));
        new.map(|(row, index)| Ok((*index, noise_pred_base.narrow(0, row, 1)?.force_contiguous()?))).collect()
    }

    fn refuse_not_finite(&self, terms: &Terms, batch: &Batch<'_>) -> Result<(), TrainError> {
        let samples = terms.offenders(batch);
        if samples.is_empty() {
            return Ok(());
        }
        self.save()?;
        Err(TrainError::LossNotFinite { step: self.step + 1, samples, last_finite: self.last_loss })
    }

    /// The drift of the adapter; `None` where it is not measured, or not to the end.
    fn drift(&self, is_stopped: &dyn Fn() -> bool) -> Result<Option<f64>, TrainError> {
        let Some(probe) = &self.probe else { return Ok(None) };
        let adapters = AdapterSet::single(&self.adapter()?, 1.0);
        match probe.drift(self.base, &adapters, is_stopped) {
            Err(TrainError::Pipeline(crate::Error::Cancelled)) => Ok(None),
            drift => drift.map(Some),
        }
    }
}
