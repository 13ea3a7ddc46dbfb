//! How a caller follows and stops a training run.

use catelier_adapters::Adapter;
use serde::{Deserialize, Serialize};

use super::TrainError;

/// The values of one optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Optimizer steps done, counted from 1.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// The weighted objective.
    pub loss: f64,
    /// The denoising term.
    pub denoising: f64,
    /// The CAT term before weighting; absent if the step has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cat: Option<f64>,
    /// The class images' term before weighting; absent if the run has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior: Option<f64>,
    /// Mean squared distance to the base's prediction on held-out prompts; absent if the step does not measure it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<f64>,
    /// Norm of the adapter's whole gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Learning rate of the text encoders' parameters; absent if they are not trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder_learning_rate: Option<f64>,
}

/// A request of the observer to the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Train on.
    Continue,
    /// Save the full state, then train on.
    Save,
    /// Save the full state and stop, for this reason.
    Stop(String),
}

impl Control {
    /// The stronger of two requests: `Stop` before `Save` before `Continue`. Of two `Stop`s the first gives the reason.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (stop @ Self::Stop(_), _) | (_, stop @ Self::Stop(_)) => stop,
            (Self::Save, _) | (_, Self::Save) => Self::Save,
            (Self::Continue, Self::Continue) => Self::Continue,
        }
    }
}

/// Follows a run. Every method but [`on_step`](Self::on_step) has a default that asks for nothing.
///
/// An error of a method ends the run with [`TrainError::Observer`], which keeps its source.
pub trait TrainObserver {
    /// Called after each step with its values.
    ///
    /// # Errors
    /// [`TrainError::observer`] with the reason why the observer cannot continue.
    fn on_step(&mut self, report: &StepReport) -> Result<Control, TrainError>;

    /// Whether the run is to stop after this step: a measurement of the drift then ends early, without a value.
    fn is_stopped(&self) -> bool {
        false
    }

    /// Whether `step` should measure the drift on held-out prompts.
    fn wants_drift(&self, _step: usize) -> bool {
        false
    }

    /// Whether [`on_adapter`](Self::on_adapter) should be called after `step`.
    fn wants_adapter(&self, _step: usize) -> bool {
        false
    }

    /// Receives the adapter as it would be saved now, for example to generate images with it or to keep the best one.
    ///
    /// # Errors
    /// Those of [`on_step`](Self::on_step).
    fn on_adapter(&mut self, _step: usize, _adapter: &Adapter) -> Result<Control, TrainError> {
        Ok(Control::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::Control::{self, Continue, Save};

    #[test]
    fn the_stronger_request_wins() {
        let stop = |reason: &str| Control::Stop(reason.into());
        assert_eq!(Continue.or(Continue), Continue);
        assert_eq!(Continue.or(Save), Save);
        assert_eq!(Save.or(Continue), Save);
        assert_eq!(Save.or(stop("converged")), stop("converged"));
        assert_eq!(stop("interrupted").or(stop("converged")), stop("interrupted"));
    }
}
