//! Heun's method in sigma (Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn).

use candle_core::Tensor;

use super::combine::weighted_sum;
use super::sigmas::{SigmaWalk, derivative, scaled_to_unit_variance, x0_at_sigma};
use super::{Sampler, SamplerSettings};
use crate::diffusion::{NoiseSchedule, Prediction};
use crate::error::Result;

/// Each step is made once, then repeated with the mean of the slopes at its two ends: two calls per step, but one for
/// the last, because the slope is not defined at sigma 0.
#[derive(Debug)]
pub(super) struct Heun {
    prediction: Prediction,
    walk: SigmaWalk,
    /// Latents and slope at the start of the step that waits for its second call.
    tried: Option<(Tensor, Tensor)>,
}

impl Heun {
    pub(super) fn new(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        let mut walk = SigmaWalk::new(schedule, settings)?;
        walk.timesteps = twice_after_first(&walk.timesteps);
        let end = walk.sigmas.pop();
        walk.sigmas = twice_after_first(&walk.sigmas);
        walk.sigmas.extend(end);
        Ok(Self { prediction: schedule.prediction(), walk, tried: None })
    }
}

fn twice_after_first(values: &[f64]) -> Vec<f64> {
    let first = values.iter().take(1).copied();
    first.chain(values.iter().skip(1).flat_map(|value| [*value, *value])).collect()
}

impl Sampler for Heun {
    fn step_of(&self, call: usize) -> usize {
        call / 2
    }

    fn timesteps(&self) -> &[f64] {
        &self.walk.timesteps
    }

    fn initial_noise_scale(&self) -> f64 {
        self.walk.initial_noise_scale
    }

    fn sigmas(&self) -> Option<&[f64]> {
        Some(&self.walk.sigmas)
    }

    fn scale_input(&self, latents: &Tensor, call: usize) -> Result<Tensor> {
        scaled_to_unit_variance(latents, self.walk.sigmas[call])
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        call: usize,
        latents: &Tensor,
        _noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        let sigma = self.walk.sigmas[call];
        let x0 = x0_at_sigma(self.prediction, model_output, latents, sigma)?;
        let slope = derivative(latents, &x0, sigma)?;
        if let Some((start, first_slope)) = self.tried.take() {
            let half = (sigma - self.walk.sigmas[call - 1]) / 2.0;
            return weighted_sum(&[(1.0, &start), (half, &first_slope), (half, &slope)]);
        }
        let next = self.walk.sigmas[call + 1];
        let tried = weighted_sum(&[(1.0, latents), (next - sigma, &slope)])?;
        self.tried = Some((latents.clone(), slope));
        Ok(tried)
    }
}
