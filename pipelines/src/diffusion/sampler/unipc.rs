//! UniPC of order two with `B(h) = e^h - 1` (Zhao et al. 2023, arXiv 2302.04867, algorithms 5 and 6).

use candle_core::Tensor;

use super::combine::weighted_sum;
use super::dpm_solver::{Level, solver_walk};
use super::{Sampler, SamplerSettings};
use crate::diffusion::{NoiseSchedule, Prediction};
use crate::error::Result;

/// Each model output first corrects the step before it, then predicts the next.
#[derive(Debug)]
pub(super) struct UniPc {
    prediction: Prediction,
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    /// Earlier predictions of `x0`, newest first.
    x0s: Vec<Tensor>,
    last: Option<LastStep>,
}

/// The step that gave the current latents.
#[derive(Debug)]
struct LastStep {
    latents: Tensor,
    order: Order,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    First,
    Second,
}

impl UniPc {
    pub(super) fn new(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Self> {
        let (timesteps, sigmas) = solver_walk(schedule, settings)?;
        Ok(Self { prediction: schedule.prediction(), timesteps, sigmas, x0s: Vec::new(), last: None })
    }

    fn level(&self, index: usize) -> Level {
        Level::new(self.sigmas[index])
    }

    /// First order at the first call and at the last: order two needs a call before and a call after.
    fn order(&self, call: usize) -> Order {
        match call == 0 || call + 1 == self.timesteps.len() {
            true => Order::First,
            false => Order::Second,
        }
    }

    /// The latents at `call`, corrected with the model's `x0` for them.
    fn corrected(&self, last: &LastStep, x0: &Tensor, call: usize) -> Result<Tensor> {
        let (from, to) = (self.level(call - 1), self.level(call));
        let step = to.lambda - from.lambda;
        let newest = &self.x0s[0];
        let base = exponential_step(&last.latents, newest, from, to)?;
        let factor = -to.alpha * (-step).exp_m1();
        let change = (x0 - newest)?;
        match last.order {
            Order::First => weighted_sum(&[(1.0, &base), (0.5 * factor, &change)]),
            Order::Second => {
                let ratio = (self.level(call - 2).lambda - from.lambda) / step;
                let (earlier, present) = corrector_weights(ratio, step);
                let slope = ((&self.x0s[1] - newest)? / ratio)?;
                weighted_sum(&[(1.0, &base), (earlier * factor, &slope), (present * factor, &change)])
            }
        }
    }

    /// Latents after `call`.
    fn predicted(&self, latents: &Tensor, call: usize, order: Order) -> Result<Tensor> {
        let (from, to) = (self.level(call), self.level(call + 1));
        let base = exponential_step(latents, &self.x0s[0], from, to)?;
        if order == Order::First {
            return Ok(base);
        }
        let step = to.lambda - from.lambda;
        let ratio = (self.level(call - 1).lambda - from.lambda) / step;
        let slope = ((&self.x0s[1] - &self.x0s[0])? / ratio)?;
        weighted_sum(&[(1.0, &base), (-0.5 * to.alpha * (-step).exp_m1(), &slope)])
    }
}

/// The exact solution for a constant `x0`.
fn exponential_step(latents: &Tensor, x0: &Tensor, from: Level, to: Level) -> Result<Tensor> {
    let step = to.lambda - from.lambda;
    weighted_sum(&[(-to.alpha * (-step).exp_m1(), x0), (to.sigma / from.sigma, latents)])
}

/// Weights of the earlier slope and the current change, from the two order conditions
/// `u + v = b1` and `ratio u + v = b2` (equation 11 of the paper).
fn corrector_weights(ratio: f64, step: f64) -> (f64, f64) {
    let growth = (-step).exp_m1();
    let first = growth / -step - 1.0;
    let second = first / -step - 0.5;
    let (b1, b2) = (first / growth, 2.0 * second / growth);
    let earlier = (b1 - b2) / (1.0 - ratio);
    (earlier, b1 - earlier)
}

impl Sampler for UniPc {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn sigmas(&self) -> Option<&[f64]> {
        Some(&self.sigmas)
    }

    fn step(
        &mut self,
        model_output: &Tensor,
        call: usize,
        latents: &Tensor,
        _noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        let x0 = self.level(call).x0(self.prediction, model_output, latents)?;
        let latents = match self.last.take() {
            Some(last) => self.corrected(&last, &x0, call)?,
            None => latents.clone(),
        };
        self.x0s.insert(0, x0);
        self.x0s.truncate(2);
        let order = self.order(call);
        let next = self.predicted(&latents, call, order)?;
        self.last = Some(LastStep { latents, order });
        Ok(next)
    }
}
