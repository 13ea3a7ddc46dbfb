//! Drift: how far the adapter has moved predictions under prompts that it was not trained on.

use candle_core::Tensor;
use catelier_adapters::AdapterSet;
use catelier_numerics::noise::{Noise, Stream};

use super::{EncodedDataset, TrainError};
use crate::diffusion::loss;
use crate::models::Condition;
use crate::models::base::BaseModel;

const STREAM: Stream = Stream("train/drift");

/// Held-out prompts, which caption no training image, encoded by the frozen base.
#[derive(Debug, Clone)]
pub struct HeldOutPrompts {
    texts: Vec<String>,
    /// One row per prompt.
    condition: Condition,
}

impl HeldOutPrompts {
    /// Encodes `prompts`, at least one. The result serves any number of runs on `base`.
    ///
    /// # Errors
    /// Those of [`TextEncoders::encode`](crate::models::TextEncoders::encode).
    pub fn encode(base: &BaseModel, prompts: &[&str]) -> crate::Result<Self> {
        let texts = prompts.iter().map(|prompt| (*prompt).to_owned()).collect();
        Ok(Self { texts, condition: base.text.encode(prompts)?.detach() })
    }

    /// The condition of prompt `row` for a prediction with `adapters`: encoded again if they change the text encoders.
    fn condition(&self, base: &BaseModel, row: usize, adapters: &AdapterSet) -> crate::Result<Condition> {
        match base.text.adapted_by(adapters) {
            true => Ok(base.text.encode_with(&[&self.texts[row]], 0, adapters)?.detach()),
            false => self.condition.rows(&[row]),
        }
    }
}

/// Fixed noisy latents under held-out prompts, and the base's predictions for them.
///
/// The timesteps are the middles of equal parts of the schedule; the latents are those of the training images, in turn.
///
/// **Source** a proxy of knowledge preservation that needs no images: mean of |e_adapted - e_base|² without the
/// trigger.
pub(super) struct DriftProbe {
    noisy: Tensor,
    timesteps: Tensor,
    prompts: HeldOutPrompts,
    noise_pred_base: Tensor,
}

impl DriftProbe {
    pub(super) fn new(
        base: &BaseModel,
        dataset: &EncodedDataset,
        prompts: &HeldOutPrompts,
        seed: u64,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Self, TrainError> {
        let count = prompts.texts.len();
        let train_timesteps = base.schedule.len();
        let timesteps: Vec<u32> =
            (0..count).map(|index| ((2 * index + 1) * train_timesteps / (2 * count)) as u32).collect();
        let (mut latents, mut noise) = (vec![], vec![]);
        for row in 0..count {
            let moments = &dataset.samples[row % dataset.samples.len()].moments;
            latents.push(base.vae.scale(&moments.mode())?);
            let shape = moments.mean.shape();
            noise.push(Noise::new(seed).normal(STREAM, 0, row as u64, shape, base.device())?);
        }
        let noisy = base.schedule.add_noise(&Tensor::cat(&latents, 0)?, &Tensor::cat(&noise, 0)?, &timesteps)?;
        let timesteps = Tensor::new(timesteps.as_slice(), base.device())?;
        let noise_pred_base = noisy.zeros_like()?;
        let mut probe = Self { noisy, timesteps, prompts: prompts.clone(), noise_pred_base };
        probe.noise_pred_base = probe.predict(base, &AdapterSet::base(), is_stopped)?;
        Ok(probe)
    }

    /// Mean squared difference to the base's prediction, over prompts, channels and space.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled) if `is_stopped` between two prompts.
    pub(super) fn drift(
        &self,
        base: &BaseModel,
        adapters: &AdapterSet,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<f64, TrainError> {
        let noise_pred = self.predict(base, adapters, is_stopped)?;
        let values = loss::cat(&noise_pred, &self.noise_pred_base)?;
        Ok(values.detach().mean_all()?.to_scalar::<f32>()?.into())
    }

    /// Predicts one prompt at a time: one batch of all prompts would need more memory than a training step.
    fn predict(
        &self,
        base: &BaseModel,
        adapters: &AdapterSet,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Tensor, TrainError> {
        let predict = |row: usize| -> Result<Tensor, TrainError> {
            if is_stopped() {
                return Err(crate::Error::Cancelled.into());
            }
            let (noisy, timestep) = (self.noisy.narrow(0, row, 1)?, self.timesteps.narrow(0, row, 1)?);
            let condition = self.prompts.condition(base, row, adapters)?;
            Ok(base.unet.predict(&noisy, &timestep, &condition, adapters)?.detach())
        };
        let rows = (0..self.noisy.dim(0)?).map(predict).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&rows, 0)?)
    }
}
