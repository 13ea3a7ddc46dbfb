//! What a training run tells whoever watches it.

use catelier_adapters::AdapterSet;
use serde::{Deserialize, Serialize};

/// The numbers of one optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Optimizer steps done, counted from 1.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// The weighted objective.
    pub loss: f64,
    /// Its denoising term.
    pub denoising: f64,
    /// Its CAT term before weighting; absent when the step has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cat: Option<f64>,
    /// The class pictures' term before weighting; absent when the run has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior: Option<f64>,
    /// Mean squared distance to the base's prediction on held-out prompts, on the steps that measure it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<f64>,
    /// Norm of the adapter's whole gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
}

/// Watches a run; every method but the first has a neutral default.
pub trait TrainObserver {
    /// A step is done.
    fn on_step(&mut self, report: &StepReport) -> Result<(), super::TrainError>;

    /// Whether `step` should measure the drift on held-out prompts.
    fn wants_drift(&self, _step: usize) -> bool {
        false
    }

    /// Whether [`on_adapter`](Self::on_adapter) should be called after `step`.
    fn wants_adapter(&self, _step: usize) -> bool {
        false
    }

    /// The adapter as it would be saved now, for previews.
    fn on_adapter(&mut self, _step: usize, _adapters: &AdapterSet) -> Result<(), super::TrainError> {
        Ok(())
    }

    /// Whether the full state should be saved after `step`.
    fn wants_save(&self, _step: usize) -> bool {
        false
    }

    /// Whether somebody asked the run to stop.
    fn stop_requested(&self) -> bool {
        false
    }
}
