//! DDIM (Song et al. 2020, arXiv 2010.02502, equations 12 and 16).

use candle_core::Tensor;

use super::combine::weighted_sum;
use super::timesteps::{Rounding, spaced};
use super::{Sampler, SamplerSettings, needed};
use crate::diffusion::{NoiseSchedule, Prediction, SMALLEST_SIGNAL};
use crate::error::{Error, Result};

/// `x0` and noise, solved from a model output for latents with share of signal `a`.
pub(super) fn x0_and_noise(
    prediction: Prediction,
    model_output: &Tensor,
    latents: &Tensor,
    signal: f64,
) -> Result<(Tensor, Tensor)> {
    let (root, spread) = (signal.sqrt(), (1.0 - signal).sqrt());
    match prediction {
        Prediction::Epsilon => {
            let root = root.max(SMALLEST_SIGNAL.sqrt());
            let x0 = weighted_sum(&[(1.0 / root, latents), (-spread / root, model_output)])?;
            Ok((x0, model_output.clone()))
        }
        Prediction::Velocity => {
            let x0 = weighted_sum(&[(root, latents), (-spread, model_output)])?;
            Ok((x0, weighted_sum(&[(spread, latents), (root, model_output)])?))
        }
    }
}

/// Steps with the marginals of the training process; `eta` adds noise.
#[derive(Debug)]
pub(super) struct Ddim {
    prediction: Prediction,
    timesteps: Vec<f64>,
    /// Share of signal before and after each call.
    signals: Vec<(f64, f64)>,
    eta: f64,
}

impl Ddim {
    pub(super) fn new(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        if !(0.0..=1.0).contains(&settings.eta) {
            return Err(Error::InvalidSetting {
                setting: "eta",
                value: settings.eta.to_string(),
                rule: "must lie between 0 and 1".into(),
            });
        }
        let spacing = settings.spacing_for(schedule);
        let timesteps = spaced(schedule, spacing, settings.steps, Rounding::Whole)?;
        let signals = signals_before_and_after(schedule, &timesteps, EndOfSchedule::One);
        Ok(Self { prediction: schedule.prediction(), timesteps, signals, eta: settings.eta })
    }

    /// Standard deviation of the noise of a step: `eta` times DDPM's.
    fn deviation(&self, (signal, next): (f64, f64)) -> f64 {
        let variance = (1.0 - next) / (1.0 - signal) * (1.0 - signal / next);
        self.eta * variance.max(0.0).sqrt()
    }
}

/// The share of signal below timestep 0, if the model's configuration does not set it.
#[derive(Debug, Clone, Copy)]
pub(super) enum EndOfSchedule {
    /// `a = 1`: no noise.
    One,
    /// `a` of timestep 0.
    FirstAlpha,
}

impl EndOfSchedule {
    pub(super) fn signal(self, schedule: &NoiseSchedule) -> f64 {
        let to_one = schedule.config().set_alpha_to_one.unwrap_or(matches!(self, Self::One));
        if to_one { 1.0 } else { schedule.alphas_cumprod()[0] }
    }
}

/// Share of signal at each timestep and at the next one.
fn signals_before_and_after(schedule: &NoiseSchedule, timesteps: &[f64], end: EndOfSchedule) -> Vec<(f64, f64)> {
    let before: Vec<f64> = timesteps.iter().map(|t| schedule.alphas_cumprod()[*t as usize]).collect();
    let after = before.iter().copied().skip(1).chain(std::iter::once(end.signal(schedule)));
    before.iter().copied().zip(after).collect()
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn draws_noise(&self, _call: usize) -> bool {
        self.eta > 0.0
    }

    fn step(&mut self, model_output: &Tensor, call: usize, latents: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let (signal, next) = self.signals[call];
        let (x0, noise_pred) = x0_and_noise(self.prediction, model_output, latents, signal)?;
        let deviation = self.deviation((signal, next));
        let direction = (1.0 - next - deviation * deviation).max(0.0).sqrt();
        let latents = weighted_sum(&[(next.sqrt(), &x0), (direction, &noise_pred)])?;
        match self.eta > 0.0 {
            true => weighted_sum(&[(1.0, &latents), (deviation, needed(noise)?)]),
            false => Ok(latents),
        }
    }
}
