//! Multistep sampling of a consistency model (Luo et al. 2023, arXiv 2310.04378, algorithm 3).

use candle_core::Tensor;

use super::combine::weighted_sum;
use super::ddim::x0_and_noise;
use super::{Sampler, SamplerSettings, needed};
use crate::diffusion::{NoiseSchedule, Prediction};
use crate::error::{Error, Result};

/// Standard deviation of the data in the boundary condition.
const DATA_DEVIATION: f64 = 0.5;

/// Each call predicts `x0` and adds noise up to the next, lower noise level.
#[derive(Debug)]
pub(super) struct Lcm {
    prediction: Prediction,
    timesteps: Vec<f64>,
    /// Share of signal at each timestep.
    signals: Vec<f64>,
    timestep_scaling: f64,
}

impl Lcm {
    pub(super) fn new(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        let timesteps = timesteps(schedule, settings.steps)?;
        let signals = timesteps.iter().map(|t| schedule.alphas_cumprod()[*t as usize]).collect();
        let timestep_scaling = schedule.config().timestep_scaling;
        Ok(Self { prediction: schedule.prediction(), timesteps, signals, timestep_scaling })
    }

    /// Factors of the latents and of `x0` in the boundary condition: 1 and 0 at timestep 0, near 0 and 1 far from it.
    fn boundary(&self, call: usize) -> (f64, f64) {
        let scaled = self.timesteps[call] * self.timestep_scaling;
        let power = scaled * scaled + DATA_DEVIATION * DATA_DEVIATION;
        (DATA_DEVIATION * DATA_DEVIATION / power, scaled / power.sqrt())
    }

    fn is_last(&self, call: usize) -> bool {
        call + 1 == self.timesteps.len()
    }
}

/// `steps` of the teacher's timesteps, evenly spaced from the noisiest.
fn timesteps(schedule: &NoiseSchedule, steps: usize) -> Result<Vec<f64>> {
    let teacher_steps = schedule.config().original_inference_steps;
    let most = teacher_steps.min(schedule.len());
    if !(1..=most).contains(&steps) {
        return Err(Error::InvalidSetting {
            setting: "steps",
            value: steps.to_string(),
            rule: format!("must be between 1 and {most} for the lcm sampler"),
        });
    }
    let stride = schedule.len() / teacher_steps.min(schedule.len());
    let teacher = |index: usize| ((most - index) * stride - 1) as f64;
    Ok((0..steps).map(|step| teacher(step * most / steps)).collect())
}

impl Sampler for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn draws_noise(&self, call: usize) -> bool {
        !self.is_last(call)
    }

    fn step(&mut self, model_output: &Tensor, call: usize, latents: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let (x0, _) = x0_and_noise(self.prediction, model_output, latents, self.signals[call])?;
        let (from_latents, from_x0) = self.boundary(call);
        let clean = weighted_sum(&[(from_x0, &x0), (from_latents, latents)])?;
        if self.is_last(call) {
            return Ok(clean);
        }
        let signal = self.signals[call + 1];
        weighted_sum(&[(signal.sqrt(), &clean), ((1.0 - signal).sqrt(), needed(noise)?)])
    }
}
