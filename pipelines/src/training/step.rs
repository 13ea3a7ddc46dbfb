//! The objective on one batch: forward passes, values of the terms, and gradients.

use std::borrow::Cow;

use candle_core::{DType, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::ops::backward;
use catelier_numerics::params::{Gradients, Parameters};

use super::{Captions, TrainError};
use crate::diffusion::NoiseSchedule;
use crate::diffusion::loss;
use crate::models::{Condition, CrossAttentionKv, Prefix, SharedPrefix, UNet, conditions_together};

/// The inputs of one forward pass, on the device.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Clean latents, `[batch, 4, height/8, width/8]`.
    pub latents: Tensor,
    /// Unit normal noise of the same shape.
    pub noise: Tensor,
    /// One timestep per sample.
    pub timesteps: Vec<u32>,
    /// Predictions to train towards, by row and `[1, 4, height/8, width/8]`; the other rows have the schedule's target.
    pub targets: Vec<(usize, Tensor)>,
    /// The captions that condition the prediction.
    pub captions: Captions<'a>,
    /// One name per sample, for messages.
    pub names: Vec<String>,
}

impl Batch<'_> {
    /// The schedule's `target` with the rows that have one of their own replaced.
    fn with_targets(&self, target: Tensor) -> Result<Tensor, TrainError> {
        if self.targets.is_empty() {
            return Ok(target);
        }
        let mut rows = (0..target.dim(0)?).map(|row| target.narrow(0, row, 1)).collect::<Result<Vec<_>, _>>()?;
        for (row, own) in &self.targets {
            rows[*row] = own.to_dtype(target.dtype())?;
        }
        Ok(Tensor::cat(&rows, 0)?)
    }
}

/// Values of the terms, one per sample; a term that the step lacks is empty.
#[derive(Default)]
pub(crate) struct Terms {
    pub(crate) denoising: Vec<f64>,
    pub(crate) cat: Vec<f64>,
    pub(crate) prior: Vec<f64>,
}

/// The training objective for one model and adapter.
pub struct Objective<'a> {
    /// The frozen UNet.
    pub unet: &'a UNet,
    /// The noise schedule that the UNet was trained with.
    pub schedule: &'a NoiseSchedule,
    /// The adapter in training, at strength 1, with dropout if the run has any.
    pub adapters: &'a AdapterSet,
    /// The adapter's parameters.
    pub parameters: &'a Parameters,
    /// Gamma of min-SNR weighting; `None` weights all timesteps equally.
    pub min_snr_gamma: Option<f64>,
}

/// The target of the CAT term.
#[derive(Debug)]
pub struct CatTarget<'a> {
    /// The captions without the trigger.
    pub captions: Captions<'a>,
    /// The base's prediction under these captions if it is cached.
    pub noise_pred_base: Option<Tensor>,
}

/// Values of both terms per sample, their gradient, and the base's prediction.
pub struct DenoisingAndCat {
    /// Denoising loss of each sample.
    pub denoising: Vec<f64>,
    /// CAT term of each sample before weighting.
    pub cat: Vec<f64>,
    /// Gradient of the weighted sum of both terms' means.
    pub gradients: Gradients,
    /// The frozen base's prediction without the trigger, `[batch, 4, height/8, width/8]`, without a graph.
    pub noise_pred_base: Tensor,
}

impl Objective<'_> {
    /// The denoising loss of each sample of `batch` under its captions, and the gradient of `weight` times their mean.
    ///
    /// # Errors
    /// [`TrainError::Numerics`] naming every parameter without a finite gradient; any error of the model.
    ///
    /// **Source** Ho et al. 2020; w(t) of min-SNR: Hang et al. 2023.
    pub fn denoising(&self, batch: &Batch<'_>, weight: f64) -> Result<(Vec<f64>, Gradients), TrainError> {
        let input = self.input(&self.shared_prefix(batch)?, &batch.captions, None)?;
        let noise_pred = self.adapted(&input)?;
        // Only the forward pass needs the input, so it is freed before the backward pass.
        drop(input);
        let values = self.denoising_values(&noise_pred, batch)?;
        let ([values], gradients) = self.backward([(&values, weight)], &batch.timesteps)?;
        Ok((values, gradients))
    }

    /// [`denoising`](Self::denoising), and the CAT term times `cat_weight` on the same latents, noise and timesteps.
    ///
    /// # Errors
    /// Those of [`denoising`](Self::denoising).
    ///
    /// **Source** arXiv 2404.07554: without the trigger, the adapted prediction is held to the frozen base's. If the
    /// text encoders are trained, the base's prediction is conditioned by the base's text encoders.
    pub fn denoising_and_cat(
        &self,
        batch: &Batch<'_>,
        target: &CatTarget<'_>,
        weight: f64,
        cat_weight: f64,
    ) -> Result<DenoisingAndCat, TrainError> {
        let shared = self.shared_prefix(batch)?;
        let without = &target.captions;
        let prefix_base = self.unet.prefix(&shared, without.condition.added.as_ref())?;
        let noise_pred_base = match &target.noise_pred_base {
            Some(known) => known.clone(),
            None => {
                let (context, keys) = (&without.condition.context, without.keys.as_ref());
                self.unet.predict_from(&prefix_base, context, keys, &AdapterSet::base())?.detach()
            }
        };
        let passes =
            Passes { shared: &shared, batch, without, prefix_base: &prefix_base, noise_pred_base: &noise_pred_base };
        let (batches, _, height, width) = batch.latents.dims4()?;
        let channels = self.unet.config().levels[0].channels;
        let ([denoising, cat], gradients) = match conditions_together(batches * height * width, channels) {
            true => self.together(&passes, weight, cat_weight)?,
            false => self.one_after_the_other(&passes, weight, cat_weight)?,
        };
        Ok(DenoisingAndCat { denoising, cat, gradients, noise_pred_base })
    }

    /// Both terms from one batch of twice the size and one backward pass.
    fn together(&self, passes: &Passes<'_>, weight: f64, cat_weight: f64) -> Result<Valued<2>, TrainError> {
        // For small maps, starting an operation costs more than its arithmetic; one batch has half as many operations.
        let noise_pred = self.both_adapted(passes)?;
        let rows = noise_pred.dim(0)? / 2;
        let denoising = self.denoising_values(&noise_pred.narrow(0, 0, rows)?, passes.batch)?;
        let cat = loss::cat(&noise_pred.narrow(0, rows, rows)?, passes.noise_pred_base)?;
        self.backward([(&denoising, weight), (&cat, cat_weight)], &passes.batch.timesteps)
    }

    /// The adapted predictions as one batch: rows with the trigger, then rows without it.
    fn both_adapted(&self, passes: &Passes<'_>) -> Result<Tensor, TrainError> {
        let with = self.input(passes.shared, &passes.batch.captions, None)?;
        let without = self.input(passes.shared, passes.without, Some(passes.prefix_base))?;
        let keys = with.keys.zip(without.keys);
        let keys = keys.map(|(with, without)| CrossAttentionKv::cat(&[with, without])).transpose()?;
        self.adapted(&Input {
            prefix: Cow::Owned(with.prefix.cat(&without.prefix)?),
            condition: Cow::Owned(Condition::cat(&[&with.condition, &without.condition])?),
            keys: keys.as_ref(),
        })
    }

    /// One backward pass per term.
    fn one_after_the_other(&self, passes: &Passes<'_>, weight: f64, cat_weight: f64) -> Result<Valued<2>, TrainError> {
        // Only one graph is alive at a time, so a CAT step needs the memory of one pass.
        let Passes { shared, batch, without, prefix_base, noise_pred_base } = passes;
        let noise_pred = self.adapted(&self.input(shared, &batch.captions, None)?)?;
        let values = self.denoising_values(&noise_pred, batch)?;
        drop(noise_pred);
        let ([denoising], mut gradients) = self.backward([(&values, weight)], &batch.timesteps)?;
        drop(values);
        let noise_pred = self.adapted(&self.input(shared, without, Some(prefix_base))?)?;
        let values = loss::cat(&noise_pred, noise_pred_base)?;
        let ([cat], more) = self.backward([(&values, cat_weight)], &batch.timesteps)?;
        gradients.accumulate(&more)?;
        Ok(([denoising, cat], gradients))
    }

    /// The input of the adapted prediction under `captions`. `prefix_base` is the prefix under the condition of the
    /// base's text encoders, if it has been computed.
    fn input<'b>(
        &self,
        shared: &SharedPrefix,
        captions: &'b Captions<'_>,
        prefix_base: Option<&'b Prefix>,
    ) -> Result<Input<'b>, TrainError> {
        let (condition, keys) = captions.adapted(self.adapters)?;
        let prefix = match prefix_base {
            Some(prefix) if captions.prompts.is_none() => Cow::Borrowed(prefix),
            _ => Cow::Owned(self.unet.prefix(shared, condition.added.as_ref())?),
        };
        Ok(Input { prefix, condition, keys })
    }

    /// The adapted prediction. It takes the base's cross-attention keys and values if the adapter changes none of the
    /// layers that compute them.
    fn adapted(&self, input: &Input<'_>) -> Result<Tensor, TrainError> {
        let keys = input.keys.filter(|_| self.unet.leaves_cross_attention_unadapted(self.adapters));
        Ok(self.unet.predict_from(&input.prefix, &input.condition.context, keys, self.adapters)?)
    }

    fn shared_prefix(&self, batch: &Batch<'_>) -> Result<SharedPrefix, TrainError> {
        let noisy = self.schedule.add_noise(&batch.latents, &batch.noise, &batch.timesteps)?;
        let timesteps = Tensor::new(batch.timesteps.as_slice(), noisy.device())?;
        Ok(self.unet.shared_prefix(&noisy, &timesteps, &[self.adapters])?)
    }

    fn denoising_values(&self, noise_pred: &Tensor, batch: &Batch<'_>) -> Result<Tensor, TrainError> {
        let target = self.schedule.target(&batch.latents, &batch.noise, &batch.timesteps)?;
        Ok(loss::denoising(noise_pred, &batch.with_targets(target)?)?)
    }

    /// The values of each term per sample, and the gradient of the sum of `weight * mean(w(t) * values)`. The gradient
    /// is empty if a value is not finite; the caller refuses the step then.
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

    /// Each sample's value times w(t) of its timestep.
    fn weighted(&self, values: &Tensor, timesteps: &[u32]) -> Result<Tensor, TrainError> {
        let Some(gamma) = self.min_snr_gamma else {
            return Ok(values.clone());
        };
        let weights = loss::min_snr_weight(self.schedule, timesteps, gamma);
        let weights = Tensor::new(weights.as_slice(), values.device())?;
        Ok(values.mul(&weights.to_dtype(values.dtype())?)?)
    }
}

/// The inputs of the passes of both terms.
struct Passes<'a> {
    shared: &'a SharedPrefix,
    batch: &'a Batch<'a>,
    /// The captions without the trigger.
    without: &'a Captions<'a>,
    /// The prefix of the base's prediction under the captions without the trigger.
    prefix_base: &'a Prefix,
    noise_pred_base: &'a Tensor,
}

/// The inputs of an adapted prediction.
struct Input<'a> {
    prefix: Cow<'a, Prefix>,
    condition: Cow<'a, Condition>,
    /// The base's cross-attention keys and values for the condition, if they have been computed.
    keys: Option<&'a CrossAttentionKv>,
}

/// Values of `N` terms, one per sample, and their gradient.
type Valued<const N: usize> = ([Vec<f64>; N], Gradients);

impl Terms {
    /// The weighted objective as a scalar; a batch without the CAT term counts with 0.
    pub(crate) fn total(&self, cat_weight: f64, prior_weight: f64) -> f64 {
        let cat_share = self.cat.len() as f64 / self.denoising.len().max(1) as f64;
        mean(&self.denoising) + cat_weight * cat_share * mean(&self.cat) + prior_weight * mean(&self.prior)
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.denoising.extend(more.denoising);
        self.cat.extend(more.cat);
        self.prior.extend(more.prior);
    }

    /// A sentence for every sample whose value is not finite: term, image, value and timestep.
    pub(crate) fn offenders(&self, batch: &Batch<'_>) -> Vec<String> {
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

/// Mean of `values`; 0 if there are none.
pub(crate) fn mean(values: &[f64]) -> f64 {
    match values.len() {
        0 => 0.0,
        count => values.iter().sum::<f64>() / count as f64,
    }
}
