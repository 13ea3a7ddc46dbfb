//! From a gradient to updated parameters: clipping, AdamW, moving average.

use std::collections::BTreeMap;

use candle_core::Tensor;
use catelier_adapters::Component;
use catelier_numerics::ema::Ema;
use catelier_numerics::optim::AdamW;
use catelier_numerics::params::{Gradients, Parameters};
use catelier_numerics::schedule::LearningRate;

use super::{TrainConfig, TrainError};

/// The trained parameters of a run, with the state of AdamW and the moving average.
///
/// The parameters of the UNet and of the text encoders are two groups, each with its own learning rate on the run's
/// schedule; the gradient is clipped by its norm over both.
#[derive(Debug)]
pub struct Optimizer {
    pub(super) parameters: Parameters,
    pub(super) adamw: AdamW,
    pub(super) average: Option<Ema>,
    max_grad_norm: f64,
    unet: LearningRate,
    text_encoders: LearningRate,
}

impl Optimizer {
    /// An optimizer of `parameters`, named by module path, before its first step.
    ///
    /// # Errors
    /// [`TrainError::Numerics`] for a decay of the average outside its range.
    pub fn new(parameters: Parameters, config: &TrainConfig) -> Result<Self, TrainError> {
        let average = config.ema_decay.map(|decay| Ema::new(&parameters, decay)).transpose()?;
        Ok(Self {
            parameters,
            adamw: AdamW::new(config.adamw()),
            average,
            max_grad_norm: config.max_grad_norm,
            unet: config.learning_rate_of(Component::Unet),
            text_encoders: config.learning_rate_of(Component::TextEncoder),
        })
    }

    /// The parameters in training.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The moving average of the parameters by name, if the run keeps one.
    pub fn average(&self) -> Option<&BTreeMap<String, Tensor>> {
        self.average.as_ref().map(Ema::average)
    }

    /// The learning rate of a component's parameters in optimizer step `step`, counted from 0.
    pub fn learning_rate(&self, component: Component, step: usize) -> f64 {
        match component {
            Component::Unet => self.unet.at(step),
            Component::TextEncoder | Component::TextEncoder2 => self.text_encoders.at(step),
        }
    }

    /// Takes optimizer step `step`, counted from 0; returns the norm of the whole gradient before clipping.
    ///
    /// # Errors
    /// [`TrainError::Numerics`] if a gradient is missing or has another shape than its parameter.
    pub fn step(&mut self, step: usize, mut gradients: Gradients) -> Result<f64, TrainError> {
        let norm = match self.max_grad_norm {
            0.0 => gradients.global_norm()?,
            limit => gradients.clip(limit)?,
        };
        let [unet, text_encoders] =
            [Component::Unet, Component::TextEncoder].map(|component| self.learning_rate(component, step));
        let rate_of = |name: &str| match Component::of_path(name) {
            Some((Component::TextEncoder | Component::TextEncoder2, _)) => text_encoders,
            _ => unet,
        };
        self.adamw.step_at(&self.parameters, &gradients, rate_of)?;
        if let Some(average) = &mut self.average {
            average.update(&self.parameters)?;
        }
        Ok(norm)
    }
}
