//! DPM-Solver++ of order two, multistep (Lu et al. 2022, arXiv 2211.01095, algorithm 2), and its
//! stochastic form.

use candle_core::Tensor;

use super::combine::weighted_sum;
use super::ddim::x0_and_noise;
use super::sigmas::{SigmaTable, karras};
use super::timesteps::spaced_for_solver;
use super::{Sampler, SamplerSettings, needed};
use crate::diffusion::{FinalSigma, NoiseSchedule, Prediction};
use crate::error::Result;

/// Least number of steps for which a last step to a noise level above zero keeps order two.
const ENOUGH_STEPS: usize = 15;

/// One noise level in the solvers' parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    /// Factor of `x0`.
    pub(super) alpha: f64,
    /// Factor of the noise; `alpha² + sigma² = 1`.
    pub(super) sigma: f64,
    /// `ln(alpha / sigma)`, half the log-SNR; infinite at sigma 0.
    pub(super) lambda: f64,
}

impl Level {
    pub(super) fn new(sigma: f64) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self { alpha, sigma: sigma * alpha, lambda: -sigma.ln() }
    }

    pub(super) fn x0(self, prediction: Prediction, model_output: &Tensor, latents: &Tensor) -> Result<Tensor> {
        Ok(x0_and_noise(prediction, model_output, latents, self.alpha * self.alpha)?.0)
    }
}

/// Timesteps and sigmas of the solvers in log-SNR; sigmas have one more entry, the end.
pub(super) fn solver_walk(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<(Vec<f64>, Vec<f64>)> {
    let table = SigmaTable::new(schedule);
    let spacing = settings.spacing_for(schedule);
    let mut timesteps = spaced_for_solver(schedule, spacing, settings.steps)?;
    let mut sigmas: Vec<f64> = timesteps.iter().map(|timestep| table.at(*timestep)).collect();
    if settings.karras_for(schedule) {
        sigmas = karras(table.smallest(), table.largest(), settings.steps);
        timesteps = sigmas.iter().map(|sigma| table.timestep_of(*sigma).round_ties_even()).collect();
    }
    sigmas.push(table.end(schedule));
    Ok((timesteps, sigmas))
}

/// Steps in log-SNR, with a slope from the last two predictions of `x0`.
#[derive(Debug)]
pub(super) struct DpmSolver {
    prediction: Prediction,
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    ends_in_first_order: bool,
    is_stochastic: bool,
    previous_x0: Option<Tensor>,
}

impl DpmSolver {
    pub(super) fn new(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        let (timesteps, sigmas) = solver_walk(schedule, settings)?;
        let ends_at_zero = schedule.config().final_sigmas_type == FinalSigma::Zero;
        Ok(Self {
            prediction: schedule.prediction(),
            ends_in_first_order: ends_at_zero || timesteps.len() < ENOUGH_STEPS,
            timesteps,
            sigmas,
            is_stochastic: false,
            previous_x0: None,
        })
    }

    pub(super) fn stochastic(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        Ok(Self { is_stochastic: true, ..Self::new(schedule, settings)? })
    }

    /// The `x0` to step with: the prediction at order one, its extrapolation at order two.
    fn extrapolated(&self, x0: &Tensor, call: usize, step: f64) -> Result<Tensor> {
        let is_last = call + 1 == self.timesteps.len();
        match &self.previous_x0 {
            Some(previous) if !(is_last && self.ends_in_first_order) => {
                let before = Level::new(self.sigmas[call]).lambda - Level::new(self.sigmas[call - 1]).lambda;
                let half_ratio = 0.5 * step / before;
                weighted_sum(&[(1.0 + half_ratio, x0), (-half_ratio, previous)])
            }
            _ => Ok(x0.clone()),
        }
    }
}

impl Sampler for DpmSolver {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigmas(&self) -> Option<&[f64]> {
        Some(&self.sigmas)
    }

    fn draws_noise(&self, _call: usize) -> bool {
        self.is_stochastic
    }

    fn step(&mut self, model_output: &Tensor, call: usize, latents: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let (here, there) = (Level::new(self.sigmas[call]), Level::new(self.sigmas[call + 1]));
        let step = there.lambda - here.lambda;
        let x0 = here.x0(self.prediction, model_output, latents)?;
        let carried = self.extrapolated(&x0, call, step)?;
        self.previous_x0 = Some(x0);
        let kept = there.sigma / here.sigma;
        if !self.is_stochastic {
            return weighted_sum(&[(-there.alpha * (-step).exp_m1(), &carried), (kept, latents)]);
        }
        let fresh = -(-2.0 * step).exp_m1();
        weighted_sum(&[
            (there.alpha * fresh, &carried),
            (kept * (-step).exp(), latents),
            (there.sigma * fresh.sqrt(), needed(noise)?),
        ])
    }
}
