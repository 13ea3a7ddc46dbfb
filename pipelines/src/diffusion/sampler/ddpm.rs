//! Ancestral sampling of the training process (Ho et al. 2020, arXiv 2006.11239, equation 7).

use candle_core::Tensor;

use super::combine::weighted_sum;
use super::ddim::x0_and_noise;
use super::timesteps::{Rounding, spaced};
use super::{Sampler, SamplerSettings, needed};
use crate::diffusion::{NoiseSchedule, Prediction};
use crate::error::Result;

/// Lower limit of a step's variance; the variance of a step to `a = 1` is zero.
const SMALLEST_VARIANCE: f64 = 1e-20;

/// Draws the next latents from the posterior, given the latents and the predicted `x0`.
#[derive(Debug)]
pub(super) struct Ddpm {
    prediction: Prediction,
    timesteps: Vec<f64>,
    /// Share of signal before each call, and 1 at the end.
    signals: Vec<f64>,
}

impl Ddpm {
    pub(super) fn new(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        let spacing = settings.spacing_for(schedule);
        let timesteps = spaced(schedule, spacing, settings.steps, Rounding::Whole)?;
        let signal = |timestep: &f64| schedule.alphas_cumprod()[*timestep as usize];
        let signals = timesteps.iter().map(signal).chain(std::iter::once(1.0)).collect();
        Ok(Self { prediction: schedule.prediction(), timesteps, signals })
    }
}

impl Sampler for Ddpm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn draws_noise(&self, call: usize) -> bool {
        self.timesteps[call] > 0.0
    }

    fn step(&mut self, model_output: &Tensor, call: usize, latents: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let (signal, next) = (self.signals[call], self.signals[call + 1]);
        let (x0, _) = x0_and_noise(self.prediction, model_output, latents, signal)?;
        let kept = signal / next;
        let from_x0 = next.sqrt() * (1.0 - kept) / (1.0 - signal);
        let from_latents = kept.sqrt() * (1.0 - next) / (1.0 - signal);
        let mean = weighted_sum(&[(from_x0, &x0), (from_latents, latents)])?;
        if !self.draws_noise(call) {
            return Ok(mean);
        }
        let variance = (1.0 - next) / (1.0 - signal) * (1.0 - kept);
        weighted_sum(&[(1.0, &mean), (variance.max(SMALLEST_VARIANCE).sqrt(), needed(noise)?)])
    }
}
