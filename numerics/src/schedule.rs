//! Learning rate schedules.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The curve of the learning rate after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Curve {
    /// The base rate at every step.
    Constant,
    /// Falls linearly to 0 at the last step.
    Linear,
    /// Falls along half a cosine to 0 at the last step.
    Cosine,
    /// `cycles` half cosines from the base rate to 0; each cycle starts at the base rate again.
    CosineWithRestarts {
        /// Number of cycles, at least 1.
        cycles: u32,
    },
    /// Falls to `end` at the last step, as a power of the remaining fraction of the run.
    Polynomial {
        /// The exponent; 1 is linear.
        power: f64,
        /// The rate at the last step, below the base rate.
        end: f64,
    },
}

/// The learning rate as a function of the step: linear warm-up from 0, then a curve.
///
/// **Source** `diffusers.optimization.get_scheduler`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// The curve after warm-up.
    pub curve: Curve,
    /// The rate at the end of warm-up.
    pub base: f64,
    /// Number of warm-up steps; 0 for no warm-up.
    pub warmup_steps: usize,
    /// Number of steps of the whole run, warm-up included.
    pub total_steps: usize,
}

impl LearningRate {
    /// The learning rate of optimizer step `step`, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.base * (step as f64 / self.warmup_steps as f64);
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = (step - self.warmup_steps) as f64 / span;
        match self.curve {
            Curve::Constant => self.base,
            Curve::Linear => self.base * self.remaining(step, span),
            Curve::Cosine => self.base * (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            Curve::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            Curve::CosineWithRestarts { cycles } => {
                let within = (f64::from(cycles) * progress).fract();
                self.base * (0.5 * (1.0 + (PI * within).cos())).max(0.0)
            }
            Curve::Polynomial { end, .. } if step > self.total_steps => end,
            Curve::Polynomial { power, end } => (self.base - end) * (1.0 - progress).powf(power) + end,
        }
    }

    fn remaining(&self, step: usize, span: f64) -> f64 {
        self.total_steps.saturating_sub(step) as f64 / span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(curve: Curve, warmup_steps: usize, total_steps: usize) -> LearningRate {
        LearningRate { curve, base: 2.0, warmup_steps, total_steps }
    }

    #[test]
    fn warm_up_climbs_in_a_straight_line_to_the_base_rate() {
        for curve in [Curve::Constant, Curve::Linear, Curve::Cosine] {
            let rates: Vec<_> = (0..5).map(|step| rate(curve, 4, 100).at(step)).collect();
            assert_eq!(rates, [0.0, 0.5, 1.0, 1.5, 2.0]);
        }
    }

    #[test]
    fn curves_end_at_zero_and_stay_there() {
        for curve in [Curve::Linear, Curve::CosineWithRestarts { cycles: 3 }] {
            assert_eq!(rate(curve, 2, 10).at(10), 0.0);
            assert_eq!(rate(curve, 2, 10).at(11), 0.0);
        }
        assert!(rate(Curve::Cosine, 2, 10).at(10).abs() < 1e-15);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_only_climbs() {
        let polynomial = Curve::Polynomial { power: 2.0, end: 0.1 };
        // The rate where the warm-up of 20 steps would end, if a run of 5 steps came so far.
        for (curve, after) in [(Curve::Constant, 2.0), (Curve::Linear, 0.0), (Curve::Cosine, 2.0), (polynomial, 0.1)] {
            let rates: Vec<_> = (0..5).map(|step| rate(curve, 20, 5).at(step)).collect();
            assert_eq!(rates, [0.0, 0.1, 0.2, 2.0 * 0.15, 0.4], "{curve:?}");
            assert_eq!(rate(curve, 20, 5).at(20), after, "{curve:?}");
        }
    }
}
