//! The training loop: an adapter on a frozen base, held to it by the CAT term.
//!
//! One step reads: next pictures; noise and timesteps as functions of (seed, step, sample); the denoising term with the
//! trigger; the CAT term without it on the same noisy latents; backward; every trained parameter must have a finite
//! gradient; clip; AdamW; average; report.

mod config;
mod drift;
mod error;
mod lessons;
mod observer;
mod state;
mod step;

use std::collections::BTreeMap;

use candle_core::Tensor;
use catelier_adapters::{Adapter, AdapterDropout, AdapterSet};
use catelier_numerics::ema::Ema;
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::optim::AdamW;
use catelier_numerics::params::{Gradients, Parameters};

pub use config::{Curve, LatentDraw, LossKind, TrainConfig};
pub use error::TrainError;
pub use lessons::{Caption, Lesson, Lessons};
pub use observer::{StepReport, TrainObserver};
pub use state::StateFolder;
pub use step::{Batch, CatTarget, DenoisingAndCat, Objective};

use crate::base::BaseModel;
use crate::model::Condition;
use drift::DriftProbe;
use lessons::Orders;
use state::RunState;
use step::{Terms, mean};

/// Where the draws of one batch come from.
struct Streams {
    latent: Stream,
    noise: Stream,
    timestep: Stream,
}

const ARTIST: Streams =
    Streams { latent: Stream("train/latent"), noise: Stream("train/noise"), timestep: Stream("train/timestep") };
const CLASS: Streams = Streams {
    latent: Stream("train/class-latent"),
    noise: Stream("train/class-noise"),
    timestep: Stream("train/class-timestep"),
};
const EMPTY: Stream = Stream("train/empty-caption");
const BANK: Stream = Stream("train/bank");

/// Which draw of the streams a sample gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    draw: u64,
    sample: u64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Finished,
    /// Somebody asked to stop; the state after this many steps is saved.
    Stopped {
        /// Optimizer steps done.
        step: usize,
    },
}

/// What one forward pass of the run contributes.
struct Part {
    batch: Batch,
    terms: Terms,
    gradients: Gradients,
    base_predictions: Vec<(Place, Tensor)>,
}

/// A training run: one base, one adapter, one set of lessons.
pub struct Trainer<'a> {
    base: &'a BaseModel,
    config: TrainConfig,
    lessons: &'a Lessons,
    orders: Orders,
    adapter: Adapter,
    parameters: Parameters,
    optimizer: AdamW,
    average: Option<Ema>,
    states: StateFolder,
    probe: Option<DriftProbe>,
    /// The base's predictions for places of the bank that have been drawn.
    bank: BTreeMap<Place, Tensor>,
    noise: Noise,
    step: usize,
    last_loss: f64,
}

impl<'a> Trainer<'a> {
    /// A run at step 0, its adapter freshly initialised, so that it changes nothing yet.
    ///
    /// # Errors
    /// A setting is out of range, no module matches the targets, or the objective lacks what it needs.
    pub fn new(
        base: &'a BaseModel,
        config: TrainConfig,
        lessons: &'a Lessons,
        states: StateFolder,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let row_norms = |path: &str| base.row_norms(path);
        let (sizes, modules) = (config.lora(), base.unet.modules());
        let (adapter, parameters) =
            Adapter::init_kind(config.kind, &sizes, modules, row_norms, config.seed, base.device())?;
        Self::with_adapter(base, config, lessons, states, adapter, parameters)
    }

    /// A run at step 0 that goes on from `start`, as a federation's next round does.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn from_adapter(
        base: &'a BaseModel,
        config: TrainConfig,
        lessons: &'a Lessons,
        states: StateFolder,
        start: &Adapter,
    ) -> Result<Self, TrainError> {
        config.validate()?;
        let (adapter, parameters) = start.trainable(base.device())?;
        Self::with_adapter(base, config, lessons, states, adapter, parameters)
    }

    fn with_adapter(
        base: &'a BaseModel,
        config: TrainConfig,
        lessons: &'a Lessons,
        states: StateFolder,
        adapter: Adapter,
        parameters: Parameters,
    ) -> Result<Self, TrainError> {
        let orders = lessons.orders(&config)?;
        let average = config.ema_decay.map(|decay| Ema::new(&parameters, decay)).transpose()?;
        Ok(Self {
            optimizer: AdamW::new(config.adamw()),
            noise: Noise::new(config.seed),
            base,
            config,
            lessons,
            orders,
            adapter,
            parameters,
            average,
            states,
            probe: None,
            bank: BTreeMap::new(),
            step: 0,
            last_loss: f64::NAN,
        })
    }

    /// Measures the drift of predictions under `prompts`, `[n, tokens, width]`, whenever the observer wants it.
    pub fn measure_drift(&mut self, prompts: &Condition) -> Result<(), TrainError> {
        self.probe = Some(DriftProbe::new(self.base, self.lessons, prompts, self.config.seed)?);
        Ok(())
    }

    /// Goes on from the newest saved state; training then gives the same bits as if it had never stopped.
    ///
    /// # Errors
    /// [`TrainError::NothingToResume`], [`TrainError::StateUnreadable`], [`TrainError::StateMismatch`].
    pub fn resume(&mut self) -> Result<usize, TrainError> {
        let (states, identity) = (self.states.clone(), self.identity());
        self.step = states.restore(&identity, &mut self.run_state())?;
        Ok(self.step)
    }

    /// Optimizer steps done so far.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The adapter as it would be saved now, without a graph: the average where there is one.
    pub fn adapter(&self) -> Result<Adapter, TrainError> {
        match &self.average {
            None => Ok(self.adapter.detached()),
            Some(average) => Ok(self.adapter.with_parameters(average.average())?.detached()),
        }
    }

    /// Trains until the last step or until the observer asks to stop, saving the state on the way.
    ///
    /// # Errors
    /// [`TrainError::LossNotFinite`] after saving the last good state; anything the model, the optimizer or the disk
    /// refuses.
    pub fn run(&mut self, observer: &mut dyn TrainObserver) -> Result<Ending, TrainError> {
        while self.step < self.config.steps {
            let mut report = self.optimizer_step()?;
            if observer.wants_drift(self.step) {
                report.drift = self.drift()?;
            }
            observer.on_step(&report)?;
            if observer.wants_adapter(self.step) {
                observer.on_adapter(self.step, &AdapterSet::single(&self.adapter()?, 1.0))?;
            }
            let stop = observer.stop_requested();
            if stop || observer.wants_save(self.step) {
                self.save()?;
            }
            if stop && self.step < self.config.steps {
                return Ok(Ending::Stopped { step: self.step });
            }
        }
        Ok(Ending::Finished)
    }

    /// Saves the full state after the current step.
    pub fn save(&mut self) -> Result<(), TrainError> {
        let (states, identity, step) = (self.states.clone(), self.identity(), self.step);
        states.save(step, &identity, &self.run_state())
    }

    fn optimizer_step(&mut self) -> Result<StepReport, TrainError> {
        let (terms, mut gradients) = self.gradients()?;
        let loss = terms.total(self.config.cat_weight * self.config.cat_every as f64, self.config.prior_weight);
        let gradient_norm = match self.config.max_grad_norm {
            0.0 => gradients.global_norm()?,
            limit => gradients.clip(limit)?,
        };
        let learning_rate = self.config.learning_rate_curve().at(self.step);
        self.optimizer.step(&self.parameters, &gradients, learning_rate)?;
        if let Some(average) = &mut self.average {
            average.update(&self.parameters)?;
        }
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
        })
    }

    /// The objective and its gradient, averaged over the accumulation.
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
            parameters: &self.parameters,
            min_snr_gamma: self.config.min_snr_gamma,
        };
        let mut parts = vec![self.artist_part(&objective, draw, share)?];
        if self.config.uses_prior() {
            parts.push(self.class_part(&objective, draw, share)?);
        }
        for part in parts {
            self.refuse_not_finite(&part.terms, &part.batch)?;
            self.bank.extend(part.base_predictions);
            gradients.accumulate(&part.gradients)?;
            terms.extend(part.terms);
        }
        Ok(())
    }

    /// Denoising of the artist's pictures, and the CAT term where this batch has it.
    fn artist_part(&self, objective: &Objective<'_>, draw: usize, share: f64) -> Result<Part, TrainError> {
        let picked = self.orders.artist(self.lessons, draw, self.config.batch);
        let places = self.places(&picked, draw);
        let lessons: Vec<&Lesson> = picked.iter().map(|(_, lesson)| *lesson).collect();
        let batch = self.batch(&lessons, &places, &ARTIST)?;
        let Some(cat_weight) = self.config.cat_weight_at(draw) else {
            let (denoising, gradients) = objective.denoising(&batch, share)?;
            let terms = Terms { denoising, ..Terms::default() };
            return Ok(Part { batch, terms, gradients, base_predictions: vec![] });
        };
        let target = self.cat_target(&lessons, &places, draw)?;
        let both = objective.denoising_and_cat(&batch, &target, share, share * cat_weight)?;
        let base_predictions = self.for_the_bank(&places, &both.noise_pred_base)?;
        let terms = Terms { denoising: both.denoising, cat: both.cat, prior: vec![] };
        Ok(Part { batch, terms, gradients: both.gradients, base_predictions })
    }

    /// Denoising of class pictures.
    fn class_part(&self, objective: &Objective<'_>, draw: usize, share: f64) -> Result<Part, TrainError> {
        let picked = self.orders.class(self.lessons, draw, self.config.batch);
        let places: Vec<_> = (0..picked.len() as u64).map(|sample| Place { draw: draw as u64, sample }).collect();
        let batch = self.batch(&picked, &places, &CLASS)?;
        let (prior, gradients) = objective.denoising(&batch, share * self.config.prior_weight)?;
        Ok(Part { batch, terms: Terms { prior, ..Terms::default() }, gradients, base_predictions: vec![] })
    }

    fn adapters(&self, draw: usize) -> AdapterSet {
        let adapters = AdapterSet::single(&self.adapter, 1.0);
        match self.config.dropout {
            0.0 => adapters,
            probability => {
                adapters.with_dropout(AdapterDropout { probability, seed: self.config.seed, step: draw as u64 })
            }
        }
    }

    /// Where the draws of each picked lesson are found: numbered by batch and sample, or, from a bank, by its entry and
    /// the lesson.
    fn places(&self, picked: &[(usize, &Lesson)], draw: usize) -> Vec<Place> {
        let place = |(sample, (lesson, _)): (u64, &(usize, &Lesson))| match self.config.cat_bank {
            0 => Place { draw: draw as u64, sample },
            size => {
                let uniform = self.noise.uniforms(BANK, draw as u64, sample, 1)[0];
                Place { draw: ((uniform * size as f64) as u64).min(size as u64 - 1), sample: *lesson as u64 }
            }
        };
        (0..).zip(picked).map(place).collect()
    }

    /// Latents, noise, timesteps and captions of the `picked` lessons, drawn from `streams` at their `places`.
    fn batch(&self, picked: &[&Lesson], places: &[Place], streams: &Streams) -> Result<Batch, TrainError> {
        let (mut latents, mut noise) = (vec![], vec![]);
        for (place, lesson) in places.iter().zip(picked) {
            let shape = lesson.moments.mean.shape();
            let normal = |stream| self.noise.normal(stream, place.draw, place.sample, shape, self.base.device());
            let drawn = match self.config.latents {
                LatentDraw::Mode => lesson.moments.mode(),
                LatentDraw::Sample => lesson.moments.sample(&normal(streams.latent)?)?,
            };
            latents.push(self.base.vae.scale(&drawn)?);
            noise.push(normal(streams.noise)?);
        }
        let captions: Vec<&Caption> = picked.iter().map(|lesson| &lesson.with_trigger).collect();
        let (condition, keys) = Caption::cat(&captions)?;
        Ok(Batch {
            latents: Tensor::cat(&latents, 0)?,
            noise: Tensor::cat(&noise, 0)?,
            timesteps: self.timesteps(places, streams.timestep),
            condition,
            keys,
            names: picked.iter().map(|lesson| lesson.name.clone()).collect(),
        })
    }

    fn timesteps(&self, places: &[Place], stream: Stream) -> Vec<u32> {
        let (schedule, sampling) = (&self.base.schedule, self.config.timestep_sampling);
        let draw = |draw, samples| sampling.draw(schedule, &self.noise, stream, draw, samples);
        match (self.config.cat_bank, places) {
            (0, [first, ..]) => draw(first.draw, 0..places.len() as u64),
            _ => places.iter().flat_map(|place| draw(place.draw, place.sample..place.sample + 1)).collect(),
        }
    }

    /// What the CAT term holds to the base: each lesson's caption without the trigger, or, for the asked share of
    /// samples, the empty caption.
    fn cat_target(&self, picked: &[&'a Lesson], places: &[Place], draw: usize) -> Result<CatTarget, TrainError> {
        let choose = |(sample, lesson): (usize, &&'a Lesson)| {
            let uniform = self.noise.uniforms(EMPTY, draw as u64, sample as u64, 1)[0];
            if uniform < self.config.cat_empty_share { &self.lessons.empty } else { &lesson.without_trigger }
        };
        let captions: Vec<&Caption> = picked.iter().enumerate().map(choose).collect();
        let known: Option<Vec<&Tensor>> = places.iter().map(|place| self.bank.get(place)).collect();
        let (condition, keys) = Caption::cat(&captions)?;
        let noise_pred_base = known.map(|rows| Tensor::cat(&rows, 0)).transpose()?;
        Ok(CatTarget { condition, keys, noise_pred_base })
    }

    /// The base's predictions that are worth keeping for the next time these places of the bank are drawn.
    fn for_the_bank(&self, places: &[Place], noise_pred_base: &Tensor) -> Result<Vec<(Place, Tensor)>, TrainError> {
        if self.config.cat_bank == 0 {
            return Ok(vec![]);
        }
        let new = places.iter().enumerate().filter(|(_, place)| !self.bank.contains_key(place));
        new.map(|(row, place)| Ok((*place, noise_pred_base.narrow(0, row, 1)?.force_contiguous()?))).collect()
    }

    fn refuse_not_finite(&mut self, terms: &Terms, batch: &Batch) -> Result<(), TrainError> {
        let samples = terms.offenders(batch);
        if samples.is_empty() {
            return Ok(());
        }
        self.save()?;
        Err(TrainError::LossNotFinite { step: self.step + 1, samples, last_finite: self.last_loss })
    }

    fn drift(&self) -> Result<Option<f64>, TrainError> {
        let adapters = AdapterSet::single(&self.adapter()?, 1.0);
        self.probe.as_ref().map(|probe| probe.drift(self.base, &adapters)).transpose()
    }

    fn run_state(&mut self) -> RunState<'_> {
        RunState { parameters: &self.parameters, optimizer: &mut self.optimizer, average: self.average.as_mut() }
    }

    /// What a resumed run must share with the saved one: all but the number of steps.
    fn identity(&self) -> String {
        let config = TrainConfig { steps: 0, ..self.config.clone() };
        let config = serde_json::to_string(&config).unwrap_or_default();
        format!("{} {} {}", self.base.fingerprint, self.lessons.digest(), config)
    }
}
