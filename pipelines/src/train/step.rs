//! One forward and backward pass of the training objective.

use candle_core::{DType, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::params::{Gradients, Parameters};

use super::TrainError;
use crate::diffusion::NoiseSchedule;
use crate::loss;
use crate::model::{Condition, UNet};

/// What one forward pass is computed from, already on the device.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Clean latents, `[batch, 4, height/8, width/8]`.
    pub(crate) latents: Tensor,
    /// Unit normal noise of the same shape.
    pub(crate) noise: Tensor,
    /// One timestep per sample.
    pub(crate) timesteps: Vec<u32>,
    /// Captions to denoise under.
    pub(crate) condition: Condition,
    /// One name per sample, for messages.
    pub(crate) names: Vec<String>,
}

/// The terms of the objective, one value per sample, `[batch]` each.
pub(crate) struct Terms {
    pub(crate) denoising: Vec<f64>,
    pub(crate) cat: Vec<f64>,
    pub(crate) prior: Vec<f64>,
}

/// The objective for one model: which passes are made and how they are weighted.
pub(crate) struct Objective<'a> {
    pub(crate) unet: &'a UNet,
    pub(crate) schedule: &'a NoiseSchedule,
    pub(crate) adapters: &'a AdapterSet,
    pub(crate) parameters: &'a Parameters,
    pub(crate) min_snr_gamma: Option<f64>,
}

impl Objective<'_> {
    /// Denoising of `batch` under its own captions, and its gradient times `weight`.
    ///
    /// **Source** methods of DDPM training; w(t) as min-SNR (Hang et al. 2023) where asked for.
    pub(crate) fn denoising(&self, batch: &Batch, weight: f64) -> Result<(Vec<f64>, Gradients), TrainError> {
        let noise_pred = self.predict(batch, &batch.condition, self.adapters)?;
        let target = self.schedule.target(&batch.latents, &batch.noise, &batch.timesteps)?;
        let values = loss::denoising(&noise_pred, &target)?;
        self.backward(&values, &batch.timesteps, weight)
    }

    /// The CAT term on the very latents, noise and timesteps of `batch`, and its gradient times `weight`.
    ///
    /// **Source** arXiv 2404.07554: the adapted prediction without the trigger is held to the frozen base's.
    pub(crate) fn cat(
        &self,
        batch: &Batch,
        without_trigger: &Condition,
        weight: f64,
    ) -> Result<(Vec<f64>, Gradients), TrainError> {
        let noise_pred_base = self.predict(batch, without_trigger, &AdapterSet::base())?;
        let noise_pred_adapted = self.predict(batch, without_trigger, self.adapters)?;
        let values = loss::cat(&noise_pred_adapted, &noise_pred_base)?;
        self.backward(&values, &batch.timesteps, weight)
    }

    fn predict(&self, batch: &Batch, condition: &Condition, adapters: &AdapterSet) -> Result<Tensor, TrainError> {
        let noisy = self.schedule.add_noise(&batch.latents, &batch.noise, &batch.timesteps)?;
        let timesteps = Tensor::new(batch.timesteps.as_slice(), noisy.device())?;
        Ok(self.unet.predict(&noisy, &timesteps, condition, adapters)?)
    }

    /// Values per sample as numbers, and the gradient of `weight * mean(w(t) * values)`.
    ///
    /// Each term goes backward by itself, so only one graph is alive at a time.
    fn backward(&self, values: &Tensor, timesteps: &[u32], weight: f64) -> Result<(Vec<f64>, Gradients), TrainError> {
        let weighted = match self.min_snr_gamma {
            None => values.clone(),
            Some(gamma) => {
                let weights = loss::min_snr_weight(self.schedule, timesteps, gamma);
                let weights = Tensor::new(weights.as_slice(), values.device())?;
                values.mul(&weights.to_dtype(values.dtype())?)?
            }
        };
        let numbers = weighted.detach().to_dtype(DType::F64)?.to_vec1::<f64>()?;
        if numbers.iter().any(|value| !value.is_finite()) {
            return Ok((numbers, Gradients::default()));
        }
        let gradients = (weighted.mean_all()? * weight)?.backward()?;
        Ok((numbers, self.parameters.collect_gradients(&gradients)?))
    }
}

impl Terms {
    /// The weighted objective, one number.
    pub(crate) fn total(&self, cat_weight: f64, prior_weight: f64) -> f64 {
        mean(&self.denoising) + cat_weight * mean(&self.cat) + prior_weight * mean(&self.prior)
    }

    /// Every sample whose value is not finite, described for a person.
    pub(crate) fn offenders(&self, batch: &Batch) -> Vec<String> {
        let of = |term: &str, values: &[f64]| -> Vec<String> {
            let bad = values.iter().enumerate().filter(|(_, value)| !value.is_finite());
            bad.map(|(index, value)| {
                let (name, timestep) = (&batch.names[index], batch.timesteps[index]);
                format!("{term} of `{name}` is {value} at timestep {timestep}")
            })
            .collect()
        };
        let mut found = of("denoising loss", &self.denoising);
        found.extend(of("CAT term", &self.cat));
        found
    }
}

/// Mean of `values`, 0 where there are none.
pub(crate) fn mean(values: &[f64]) -> f64 {
    match values.len() {
        0 => 0.0,
        count => values.iter().sum::<f64>() / count as f64,
    }
}
