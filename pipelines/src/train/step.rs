//! One forward and backward pass of the training objective.

use candle_core::{DType, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::backward;
use catelier_numerics::params::{Gradients, Parameters};

use super::TrainError;
use crate::diffusion::NoiseSchedule;
use crate::loss;
use crate::model::{Condition, CrossAttentionKv, Prefix, SharedPrefix, UNet, conditions_together};

/// What one forward pass is computed from, already on the device.
#[derive(Debug)]
pub struct Batch {
    /// Clean latents, `[batch, 4, height/8, width/8]`.
    pub latents: Tensor,
    /// Unit normal noise of the same shape.
    pub noise: Tensor,
    /// One timestep per sample.
    pub timesteps: Vec<u32>,
    /// Captions to denoise under.
    pub condition: Condition,
    /// The base's cross-attention keys and values of them, where they are known.
    pub keys: Option<CrossAttentionKv>,
    /// One name per sample, for messages.
    pub names: Vec<String>,
}

/// The terms of the objective, one value per sample, `[batch]` each; a term that was not taken has none.
#[derive(Default)]
pub(crate) struct Terms {
    pub(crate) denoising: Vec<f64>,
    pub(crate) cat: Vec<f64>,
    pub(crate) prior: Vec<f64>,
}

/// The objective for one model: which passes are made and how they are weighted.
pub struct Objective<'a> {
    /// The frozen base.
    pub unet: &'a UNet,
    /// Its noise schedule.
    pub schedule: &'a NoiseSchedule,
    /// The adapter that is trained.
    pub adapters: &'a AdapterSet,
    /// The adapter's parameters, which get the gradients.
    pub parameters: &'a Parameters,
    /// γ of min-SNR weighting; `None` weighs all timesteps the same.
    pub min_snr_gamma: Option<f64>,
}

/// What the CAT term holds the adapter to.
#[derive(Debug)]
pub struct CatTarget {
    /// The captions without the trigger.
    pub condition: Condition,
    /// The base's cross-attention keys and values of them, where they are known.
    pub keys: Option<CrossAttentionKv>,
    /// The base's prediction, where it is known.
    pub noise_pred_base: Option<Tensor>,
}

/// Values of both terms, one per sample, their gradient, and the base's prediction.
pub struct DenoisingAndCat {
    /// The denoising term of each sample.
    pub denoising: Vec<f64>,
    /// The CAT term of each sample.
    pub cat: Vec<f64>,
    /// Gradients of the weighted sum of both means.
    pub gradients: Gradients,
    /// The base's prediction without the trigger, `[batch, channels, height, width]`, without a graph.
    pub noise_pred_base: Tensor,
}

impl Objective<'_> {
    /// Denoising of `batch` under its own captions, and its gradient times `weight`.
    ///
    /// **Source** methods of DDPM training; w(t) as min-SNR (Hang et al. 2023) where asked for.
    ///
    /// # Errors
    /// Those of the tensor operations, and [`TrainError::Numerics`] where a parameter gets no finite gradient.
    pub fn denoising(&self, batch: &Batch, weight: f64) -> Result<(Vec<f64>, Gradients), TrainError> {
        let prefix = self.unet.prefix(&self.shared_prefix(batch)?, batch.condition.added.as_ref())?;
        let noise_pred = self.adapted(&prefix, &batch.condition, batch.keys.as_ref())?;
        let values = self.denoising_values(&noise_pred, batch)?;
        let ([values], gradients) = self.backward([(&values, weight)], &batch.timesteps)?;
        Ok((values, gradients))
    }

    /// The same with the CAT term on the very latents, noise and timesteps of `batch`, times `cat_weight`.
    ///
    /// **Source** arXiv 2404.07554: the adapted prediction without the trigger is held to the frozen base's.
    ///
    /// # Errors
    /// Those of [`denoising`](Self::denoising).
    pub fn denoising_and_cat(
        &self,
        batch: &Batch,
        target: &CatTarget,
        weight: f64,
        cat_weight: f64,
    ) -> Result<DenoisingAndCat, TrainError> {
        let shared = self.shared_prefix(batch)?;
        let [prefix, prefix_without] =
            [&batch.condition, &target.condition].map(|condition| self.unet.prefix(&shared, condition.added.as_ref()));
        let (prefix, prefix_without) = (prefix?, prefix_without?);
        let noise_pred_base = match &target.noise_pred_base {
            Some(known) => known.clone(),
            None => {
                let (context, keys) = (&target.condition.context, target.keys.as_ref());
                self.unet.predict_from(&prefix_without, context, keys, &AdapterSet::base())?.detach()
            }
        };
        let predictions = Predictions { batch, prefix, target, prefix_without, noise_pred_base: &noise_pred_base };
        let (batches, _, height, width) = batch.latents.dims4()?;
        let channels = self.unet.config().levels[0].channels;
        let ([denoising, cat], gradients) = match conditions_together(batches * height * width, channels) {
            true => self.together(&predictions, weight, cat_weight)?,
            false => self.one_after_the_other(&predictions, weight, cat_weight)?,
        };
        Ok(DenoisingAndCat { denoising, cat, gradients, noise_pred_base })
    }

    /// Both terms from one batch of twice the size, and one backward pass.
    fn together(&self, given: &Predictions<'_>, weight: f64, cat_weight: f64) -> Result<Valued<2>, TrainError> {
        let Predictions { batch, prefix, target, prefix_without, .. } = given;
        let keys = batch.keys.as_ref().zip(target.keys.as_ref());
        let keys = keys.map(|(with, without)| CrossAttentionKv::cat(&[with, without])).transpose()?;
        let both = Condition::cat(&[&batch.condition, &target.condition])?;
        let noise_pred = self.adapted(&prefix.cat(prefix_without)?, &both, keys.as_ref())?;
        let rows = noise_pred.dim(0)? / 2;
        let denoising = self.denoising_values(&noise_pred.narrow(0, 0, rows)?, batch)?;
        let cat = loss::cat(&noise_pred.narrow(0, rows, rows)?, given.noise_pred_base)?;
        self.backward([(&denoising, weight), (&cat, cat_weight)], &batch.timesteps)
    }

    /// Each term goes backward by itself, so only one graph is alive at a time.
    fn one_after_the_other(
        &self,
        given: &Predictions<'_>,
        weight: f64,
        cat_weight: f64,
    ) -> Result<Valued<2>, TrainError> {
        let Predictions { batch, prefix, target, prefix_without, noise_pred_base } = given;
        let noise_pred = self.adapted(prefix, &batch.condition, batch.keys.as_ref())?;
        let values = self.denoising_values(&noise_pred, batch)?;
        drop(noise_pred);
        let ([denoising], mut gradients) = self.backward([(&values, weight)], &batch.timesteps)?;
        drop(values);
        let noise_pred = self.adapted(prefix_without, &target.condition, target.keys.as_ref())?;
        let values = loss::cat(&noise_pred, noise_pred_base)?;
        let ([cat], more) = self.backward([(&values, cat_weight)], &batch.timesteps)?;
        gradients.accumulate(&more)?;
        Ok(([denoising, cat], gradients))
    }

    /// The adapted prediction; `keys`, the base's cross-attention keys and values of the condition, are used where the
    /// adapter leaves those layers alone.
    fn adapted(
        &self,
        prefix: &Prefix,
        condition: &Condition,
        keys: Option<&CrossAttentionKv>,
    ) -> Result<Tensor, TrainError> {
        let keys = keys.filter(|_| self.unet.leaves_cross_attention_unadapted(self.adapters));
        Ok(self.unet.predict_from(prefix, &condition.context, keys, self.adapters)?)
    }

    fn shared_prefix(&self, batch: &Batch) -> Result<SharedPrefix, TrainError> {
        let noisy = self.schedule.add_noise(&batch.latents, &batch.noise, &batch.timesteps)?;
        let timesteps = Tensor::new(batch.timesteps.as_slice(), noisy.device())?;
        Ok(self.unet.shared_prefix(&noisy, &timesteps, &[self.adapters])?)
    }

    fn denoising_values(&self, noise_pred: &Tensor, batch: &Batch) -> Result<Tensor, TrainError> {
        let target = self.schedule.target(&batch.latents, &batch.noise, &batch.timesteps)?;
        Ok(loss::denoising(noise_pred, &target)?)
    }

    /// Values per sample of each term as numbers, and the gradient of the sum of `weight * mean(w(t) * values)`.
    fn backward<const N: usize>(&self, terms: [(&Tensor, f64); N], timesteps: &[u32]) -> Result<Valued<N>, TrainError> {
        let mut numbers = [const { Vec::new() }; N];
        let mut objective: Option<Tensor> = None;
        for ((values, weight), numbers) in terms.into_iter().zip(&mut numbers) {
            let values = self.weighted(values, timesteps)?;
            *numbers = values.detach().to_dtype(DType::F64)?.to_vec1::<f64>()?;
            let term = (values.mean_all()? * weight)?;
            objective = Some(match objective {
                Some(others) => (others + term)?,
                None => term,
            });
        }
        match objective {
            Some(objective) if numbers.iter().flatten().all(|value| value.is_finite()) => {
                Ok((numbers, self.parameters.collect_gradients(&backward(objective)?)?))
            }
            _ => Ok((numbers, Gradients::default())),
        }
    }

    /// Each sample's value at the weight of its timestep.
    fn weighted(&self, values: &Tensor, timesteps: &[u32]) -> Result<Tensor, TrainError> {
        let Some(gamma) = self.min_snr_gamma else {
            return Ok(values.clone());
        };
        let weights = loss::min_snr_weight(self.schedule, timesteps, gamma);
        let weights = Tensor::new(weights.as_slice(), values.device())?;
        Ok(values.mul(&weights.to_dtype(values.dtype())?)?)
    }
}

/// What both terms are computed from.
struct Predictions<'a> {
    batch: &'a Batch,
    prefix: Prefix,
    target: &'a CatTarget,
    prefix_without: Prefix,
    noise_pred_base: &'a Tensor,
}

/// Values of some terms, one per sample, and their gradient.
type Valued<const N: usize> = ([Vec<f64>; N], Gradients);

impl Terms {
    /// The weighted objective, one number; samples without a CAT term count as 0.
    pub(crate) fn total(&self, cat_weight: f64, prior_weight: f64) -> f64 {
        let cat_share = self.cat.len() as f64 / self.denoising.len().max(1) as f64;
        mean(&self.denoising) + cat_weight * cat_share * mean(&self.cat) + prior_weight * mean(&self.prior)
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.denoising.extend(more.denoising);
        self.cat.extend(more.cat);
        self.prior.extend(more.prior);
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
        found.extend(of("denoising loss of the class", &self.prior));
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
