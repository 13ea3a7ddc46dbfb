//! PNDM without its Runge-Kutta start, also called PLMS (Liu et al. 2022, arXiv 2202.09778).

use candle_core::Tensor;

use super::combine::weighted_sum;
use super::ddim::{EndOfSchedule, x0_and_noise};
use super::timesteps::{Rounding, spaced};
use super::{Sampler, SamplerSettings};
use crate::diffusion::{NoiseSchedule, Prediction};
use crate::error::{Error, Result};

/// Adams-Bashforth coefficients of orders 2 to 4, newest first.
const SECOND_ORDER: [f64; 2] = [3.0 / 2.0, -1.0 / 2.0];
const THIRD_ORDER: [f64; 3] = [23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0];
const FOURTH_ORDER: [f64; 4] = [55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0];

/// Linear multistep. The second call repeats the first step with the mean of two outputs, so there is one call more
/// than steps. It combines predictions of the noise: a velocity is converted to noise first, because velocities of
/// different timesteps cannot be added.
#[derive(Debug)]
pub(super) struct Pndm {
    prediction: Prediction,
    timesteps: Vec<f64>,
    /// Share of signal of the latents at each call.
    signals: Vec<f64>,
    /// Share of signal before and after each call's step.
    strides: Vec<(f64, f64)>,
    /// Earlier predictions of the noise, newest first.
    noise_preds: Vec<Tensor>,
    start: Option<Tensor>,
}

impl Pndm {
    pub(super) fn new(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        let spacing = settings.spacing_for(schedule);
        let mut timesteps = spaced(schedule, spacing, settings.steps, Rounding::Whole)?;
        if let Some(second) = timesteps.get(1).copied() {
            timesteps.insert(1, second);
        }
        let signals = signals_at(schedule, &timesteps)?;
        let strides = strides(&signals, EndOfSchedule::FirstAlpha.signal(schedule));
        let prediction = schedule.prediction();
        Ok(Self { prediction, timesteps, signals, strides, noise_preds: Vec::new(), start: None })
    }

    /// The noise to step with: a combination of this prediction and the earlier ones.
    fn combined(&mut self, noise_pred: Tensor, call: usize) -> Result<Tensor> {
        if call == 1 {
            return weighted_sum(&[(0.5, &noise_pred), (0.5, &self.noise_preds[0])]);
        }
        self.noise_preds.insert(0, noise_pred);
        self.noise_preds.truncate(4);
        let coefficients: &[f64] = match self.noise_preds.len() {
            1 => &[1.0],
            2 => &SECOND_ORDER,
            3 => &THIRD_ORDER,
            _ => &FOURTH_ORDER,
        };
        let terms: Vec<(f64, &Tensor)> = coefficients.iter().copied().zip(&self.noise_preds).collect();
        weighted_sum(&terms)
    }
}

/// Share of signal at each timestep; an error if one is zero, because noise does not determine `x0` there.
fn signals_at(schedule: &NoiseSchedule, timesteps: &[f64]) -> Result<Vec<f64>> {
    let signals: Vec<f64> = timesteps.iter().map(|t| schedule.alphas_cumprod()[*t as usize]).collect();
    match signals.contains(&0.0) {
        false => Ok(signals),
        true => Err(Error::InvalidSetting {
            setting: "sampler",
            value: "`pndm`".into(),
            rule: "cannot start at zero terminal SNR; use `ddim` or another, or leading spacing".into(),
        }),
    }
}

/// Share of signal before and after each call's step; the second call repeats the first step.
fn strides(signals: &[f64], end: f64) -> Vec<(f64, f64)> {
    let after = signals.iter().copied().skip(1).chain(std::iter::once(end));
    let mut strides: Vec<(f64, f64)> = signals.iter().copied().zip(after).collect();
    if strides.len() > 1 {
        strides[1] = strides[0];
    }
    strides
}

/// Equation 11 of the paper: from one share of signal to the next with a prediction of the noise.
fn transfer(latents: &Tensor, noise_pred: &Tensor, (signal, next): (f64, f64)) -> Result<Tensor> {
    let divisor = signal * (1.0 - next).sqrt() + (signal * (1.0 - signal) * next).sqrt();
    weighted_sum(&[((next / signal).sqrt(), latents), (-(next - signal) / divisor, noise_pred)])
}

impl Sampler for Pndm {
    fn step_of(&self, call: usize) -> usize {
        call.saturating_sub(1)
    }

    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        call: usize,
        latents: &Tensor,
        _noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (_, noise_pred) = x0_and_noise(self.prediction, model_output, latents, self.signals[call])?;
        let combined = self.combined(noise_pred, call)?;
        let from = match (call, self.start.take()) {
            (1, Some(start)) => start,
            _ => latents.clone(),
        };
        if call == 0 {
            self.start = Some(latents.clone());
        }
        transfer(&from, &combined, self.strides[call])
    }
}
