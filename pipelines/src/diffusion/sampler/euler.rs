//! Euler and Euler ancestral (Karras et al. 2022, arXiv 2206.00364, and its ancestral variant).

use candle_core::Tensor;

use super::combine::weighted_sum;
use super::sigmas::{SigmaWalk, derivative, scaled_to_unit_variance, x0_at_sigma};
use super::{Sampler, SamplerSettings, needed};
use crate::diffusion::{NoiseSchedule, Prediction};
use crate::error::Result;

/// First-order steps down in sigma. The ancestral variant steps below the next sigma and adds noise up to it.
#[derive(Debug)]
pub(super) struct Euler {
    prediction: Prediction,
    walk: SigmaWalk,
    is_ancestral: bool,
}

impl Euler {
    pub(super) fn new(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        let walk = SigmaWalk::new(schedule, settings)?;
        Ok(Self { prediction: schedule.prediction(), walk, is_ancestral: false })
    }

    pub(super) fn ancestral(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        Ok(Self { is_ancestral: true, ..Self::new(schedule, settings)? })
    }
}

/// The sigma to step down to and the deviation of the noise added there; together they give sigma `to`.
fn split_ancestral(from: f64, to: f64) -> (f64, f64) {
    let added = (to * to * (from * from - to * to) / (from * from)).max(0.0);
    ((to * to - added).max(0.0).sqrt(), added.sqrt())
}

impl Sampler for Euler {
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

    fn draws_noise(&self, _call: usize) -> bool {
        self.is_ancestral
    }

    fn step(&mut self, model_output: &Tensor, call: usize, latents: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let (sigma, next) = (self.walk.sigmas[call], self.walk.sigmas[call + 1]);
        let x0 = x0_at_sigma(self.prediction, model_output, latents, sigma)?;
        let direction = derivative(latents, &x0, sigma)?;
        if !self.is_ancestral {
            return weighted_sum(&[(1.0, latents), (next - sigma, &direction)]);
        }
        let (down, added) = split_ancestral(sigma, next);
        weighted_sum(&[(1.0, latents), (down - sigma, &direction), (added, needed(noise)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ancestral_parts_add_up_to_the_next_sigma() {
        for (from, to) in [(14.6, 10.0), (1.0, 0.9), (0.5, 0.03), (0.03, 0.0)] {
            let (down, added) = split_ancestral(from, to);
            assert!((down.hypot(added) - to).abs() < 1e-12);
        }
    }
}
