//! How a caller follows a training run, and steers it.

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
    /// Its denoising term.
    pub denoising: f64,
    /// Its CAT term before weighting; absent when the step has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cat: Option<f64>,
    /// The class images' term before weighting; absent when the run has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior: Option<f64>,
    /// Mean squared distance to the base's prediction on held-out prompts, on the steps that measure it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<f64>,
    /// Norm of the adapter's whole gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Learning rate of the text encoders' parameters; absent when they are not trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_encoder_learning_rate: Option<f64>,
}

/// What a run does next.
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
    /// The stronger of two requests: stopping before saving before going on; the first of two reasons.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (stop @ Self::Stop(_), _) | (_, stop @ Self::Stop(_)) => stop,
            (Self::Save, _) | (_, Self::Save) => Self::Save,
            (Self::Continue, Self::Continue) => Self::Continue,
        }
    }
}

/// Follows a run; every method but the first has a neutral default.
///
/// An error of a method ends the run with [`TrainError::Observer`], which keeps its source.
pub trait TrainObserver {
    /// A step is done.
    ///
    /// # Errors
    /// Whatever keeps the observer from its work, as [`TrainError::observer`].
    fn on_step(&mut self, report: &StepReport) -> Result<Control, TrainError>;

    /// Whether `step` should measure the drift on held-out prompts.
    fn wants_drift(&self, _step: usize) -> bool {
        false
    }

    /// Whether [`on_adapter`](Self::on_adapter) should be called after `step`.
    fn wants_adapter(&self, _step: usize) -> bool {
        false
    }

    /// The adapter as it would be saved now: to generate with, to score, and to keep if it is the best so far.
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
