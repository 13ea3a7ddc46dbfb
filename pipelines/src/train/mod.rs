//! The training loop: a LoRA adapter on a frozen base, held to it by the CAT term.
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

use candle_core::{Tensor, Var};
use catelier_adapters::{Adapter, AdapterDropout, AdapterSet};
use catelier_numerics::ema::Ema;
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::optim::AdamW;
use catelier_numerics::params::{Gradients, Parameters};

pub use config::{Curve, LatentDraw, LossKind, TrainConfig};
pub use error::TrainError;
pub use lessons::{Lesson, Lessons};
pub use observer::{StepReport, TrainObserver};
pub use state::StateFolder;

use crate::base::BaseModel;
use crate::model::Condition;
use drift::DriftProbe;
use lessons::Orders;
use state::RunState;
pub(crate) use step::{Batch, Objective};
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
    noise: Noise,
    step: usize,
    last_loss: f64,
}

impl<'a> Trainer<'a> {
    /// A run at step 0, its adapter freshly initialised: `up` is zero, so it changes nothing yet.
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
        let (adapter, parameters) = Adapter::init(&config.lora(), base.unet.modules(), config.seed, base.device())?;
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
            Some(average) => {
                let mut parameters = Parameters::new();
                for (name, tensor) in average.average() {
                    parameters.insert(name.clone(), Var::from_tensor(tensor)?);
                }
                Ok(Adapter::from_parameters(&parameters, self.config.alpha)?.detached())
            }
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
        let loss = terms.total(self.config.cat_weight, self.config.prior_weight);
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
            cat: self.config.uses_cat().then(|| mean(&terms.cat)),
            prior: self.config.uses_prior().then(|| mean(&terms.prior)),
            drift: None,
            gradient_norm,
            learning_rate,
        })
    }

    /// The objective and its gradient, averaged over the accumulation.
    fn gradients(&mut self) -> Result<(Terms, Gradients), TrainError> {
        let share = 1.0 / self.config.accumulation as f64;
        let mut terms = Terms { denoising: vec![], cat: vec![], prior: vec![] };
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
        let picked = self.orders.artist(self.lessons, draw, self.config.batch);
        let batch = self.batch(&picked, draw, &ARTIST)?;
        let (denoising, gradient) = objective.denoising(&batch, share)?;
        let mut found = Terms { denoising, cat: vec![], prior: vec![] };
        let mut parts = vec![gradient];
        if self.config.uses_cat() {
            let without_trigger = self.cat_condition(&picked, draw)?;
            let (cat, gradient) = objective.cat(&batch, &without_trigger, share * self.config.cat_weight)?;
            found.cat = cat;
            parts.push(gradient);
        }
        if self.config.uses_prior() {
            let picked = self.orders.class(self.lessons, draw, self.config.batch);
            let class = self.batch(&picked, draw, &CLASS)?;
            let (prior, gradient) = objective.denoising(&class, share * self.config.prior_weight)?;
            found.prior = prior;
            parts.push(gradient);
        }
        self.refuse_not_finite(&found, &batch)?;
        for part in &parts {
            gradients.accumulate(part)?;
        }
        terms.denoising.extend(found.denoising);
        terms.cat.extend(found.cat);
        terms.prior.extend(found.prior);
        Ok(())
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

    /// Latents, noise, timesteps and captions of the `picked` lessons, drawn from `streams`.
    fn batch(&self, picked: &[&Lesson], draw: usize, streams: &Streams) -> Result<Batch, TrainError> {
        let draw = draw as u64;
        let (mut latents, mut noise) = (vec![], vec![]);
        for (sample, lesson) in (0..).zip(picked) {
            let shape = lesson.moments.mean.shape();
            let normal = |stream| self.noise.normal(stream, draw, sample, shape, self.base.device());
            let drawn = match self.config.latents {
                LatentDraw::Mode => lesson.moments.mode(),
                LatentDraw::Sample => lesson.moments.sample(&normal(streams.latent)?)?,
            };
            latents.push(self.base.vae.scale(&drawn)?);
            noise.push(normal(streams.noise)?);
        }
        let samples = 0..picked.len() as u64;
        let (schedule, sampling) = (&self.base.schedule, self.config.timestep_sampling);
        Ok(Batch {
            latents: Tensor::cat(&latents, 0)?,
            noise: Tensor::cat(&noise, 0)?,
            timesteps: sampling.draw(schedule, &self.noise, streams.timestep, draw, samples),
            condition: Condition::cat(&picked.iter().map(|lesson| &lesson.with_trigger).collect::<Vec<_>>())?,
            names: picked.iter().map(|lesson| lesson.name.clone()).collect(),
        })
    }

    /// What the CAT term holds to the base: each lesson's caption without the trigger, or, for the asked share of
    /// samples, the empty caption.
    fn cat_condition(&self, picked: &[&'a Lesson], draw: usize) -> Result<Condition, TrainError> {
        let choose = |(sample, lesson): (usize, &&'a Lesson)| {
            let uniform = self.noise.uniforms(EMPTY, draw as u64, sample as u64, 1)[0];
            if uniform < self.config.cat_empty_share { &self.lessons.empty } else { &lesson.without_trigger }
        };
        Ok(Condition::cat(&picked.iter().enumerate().map(choose).collect::<Vec<_>>())?)
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
