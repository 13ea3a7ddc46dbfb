//! The schedule as noise levels: `sigma = sqrt((1 - a) / a)`.
//!
//! Noisy latents times `1 / sqrt(a)` are `x0 + sigma noise`; a sampler steps down in sigma (Karras et al. 2022, arXiv
//! 2206.00364).

use candle_core::Tensor;

use super::SamplerSettings;
use super::combine::weighted_sum;
use crate::diffusion::{FinalSigma, NoiseSchedule, Prediction, SMALLEST_SIGNAL};
use crate::error::Result;

/// Exponent of Karras sigmas, as in the paper.
const RHO: f64 = 7.0;

/// Sigma of every training timestep, in rising order.
#[derive(Debug, Clone)]
pub(super) struct SigmaTable(Vec<f64>);

impl SigmaTable {
    pub(super) fn new(schedule: &NoiseSchedule) -> Self {
        let sigma = |signal: &f64| {
            let signal = signal.max(SMALLEST_SIGNAL);
            ((1.0 - signal) / signal).sqrt()
        };
        Self(schedule.alphas_cumprod().iter().map(sigma).collect())
    }

    pub(super) fn smallest(&self) -> f64 {
        self.0[0]
    }

    pub(super) fn largest(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    /// Sigma at a timestep, interpolated between whole timesteps.
    pub(super) fn at(&self, timestep: f64) -> f64 {
        let below = (timestep as usize).min(self.0.len() - 1);
        let above = (below + 1).min(self.0.len() - 1);
        self.0[below] + (self.0[above] - self.0[below]) * (timestep - below as f64)
    }

    /// The timestep with this `sigma`, interpolated in log sigma.
    pub(super) fn timestep_of(&self, sigma: f64) -> f64 {
        let below = self.0.partition_point(|known| *known <= sigma).max(1) - 1;
        let below = below.min(self.0.len().saturating_sub(2));
        let above = (below + 1).min(self.0.len() - 1);
        let (low, high) = (self.0[below].ln(), self.0[above].ln());
        let share = if high > low { (sigma.max(1e-10).ln() - low) / (high - low) } else { 0.0 };
        below as f64 + share.clamp(0.0, 1.0)
    }

    /// The last entry of a sampler's sigmas.
    pub(super) fn end(&self, schedule: &NoiseSchedule) -> f64 {
        match schedule.config().final_sigmas_type {
            FinalSigma::Zero => 0.0,
            FinalSigma::Smallest => self.smallest(),
        }
    }
}

/// `count` sigmas from `largest` down to `smallest`, evenly spaced in `sigma^(1/7)`
/// (arXiv 2206.00364, equation 5).
pub(super) fn karras(smallest: f64, largest: f64, count: usize) -> Vec<f64> {
    let (low, high) = (smallest.powf(1.0 / RHO), largest.powf(1.0 / RHO));
    let sigma = |index: usize| {
        let share = if count > 1 { index as f64 / (count - 1) as f64 } else { 0.0 };
        (high + share * (low - high)).powf(RHO)
    };
    (0..count).map(sigma).collect()
}

/// Timesteps and sigmas of a generation; sigmas have one more entry, the end.
#[derive(Debug, Clone)]
pub(super) struct SigmaWalk {
    pub(super) timesteps: Vec<f64>,
    pub(super) sigmas: Vec<f64>,
    pub(super) initial_noise_scale: f64,
}

impl SigmaWalk {
    /// Timesteps and sigmas of Euler and Heun.
    pub(super) fn new(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        use super::timesteps::{Rounding, spaced};
        use crate::diffusion::Spacing;

        let table = SigmaTable::new(schedule);
        let spacing = settings.spacing_for(schedule);
        let mut timesteps = spaced(schedule, spacing, settings.steps, Rounding::Fractional)?;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|timestep| table.at(*timestep)).collect();
        if settings.karras_for(schedule) {
            sigmas = karras(sigmas[sigmas.len() - 1], sigmas[0], sigmas.len());
            timesteps = sigmas.iter().map(|sigma| table.timestep_of(*sigma)).collect();
        }
        let initial_noise_scale = match spacing {
            // At the start are the noise and the little signal that the model expects below the last timestep.
            Spacing::Leading => (sigmas[0] * sigmas[0] + 1.0).sqrt(),
            Spacing::Linspace | Spacing::Trailing => sigmas[0],
        };
        sigmas.push(table.end(schedule));
        Ok(Self { timesteps, sigmas, initial_noise_scale })
    }
}

/// `latents / sqrt(sigma² + 1)`: converts `x0 + sigma noise` to the model's input of unit variance.
pub(super) fn scaled_to_unit_variance(latents: &Tensor, sigma: f64) -> Result<Tensor> {
    Ok((latents / (sigma * sigma + 1.0).sqrt())?)
}

/// `x0`, solved from latents `x0 + sigma noise` and the model's output.
pub(super) fn x0_at_sigma(
    prediction: Prediction,
    model_output: &Tensor,
    latents: &Tensor,
    sigma: f64,
) -> Result<Tensor> {
    let power = sigma * sigma + 1.0;
    match prediction {
        Prediction::Epsilon => weighted_sum(&[(1.0, latents), (-sigma, model_output)]),
        Prediction::Velocity => weighted_sum(&[(1.0 / power, latents), (-sigma / power.sqrt(), model_output)]),
    }
}

/// Derivative of the latents by sigma, `(latents - x0) / sigma`.
pub(super) fn derivative(latents: &Tensor, x0: &Tensor, sigma: f64) -> Result<Tensor> {
    Ok(((latents - x0)? / sigma)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{BetaSchedule, SchedulerConfig};

    fn table() -> SigmaTable {
        let config = SchedulerConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            ..SchedulerConfig::default()
        };
        SigmaTable::new(&NoiseSchedule::from_config(&config).unwrap())
    }

    #[test]
    fn the_timestep_of_a_sigma_is_where_the_table_has_it() {
        let table = table();
        for timestep in [0.0, 1.0, 500.0, 998.0, 999.0] {
            assert!((table.timestep_of(table.at(timestep)) - timestep).abs() < 1e-6);
        }
        assert_eq!(table.timestep_of(0.0), 0.0);
        assert_eq!(table.timestep_of(1e9), 999.0);
    }

    #[test]
    fn karras_sigmas_fall_from_the_largest_to_the_smallest() {
        let sigmas = karras(0.03, 14.6, 10);
        assert!((sigmas[0] - 14.6).abs() < 1e-9 && (sigmas[9] - 0.03).abs() < 1e-9);
        assert!(sigmas.windows(2).all(|pair| pair[0] > pair[1]));
    }
}
