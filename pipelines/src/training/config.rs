//! The settings of a training run, validated before any weight is loaded.

use catelier_adapters::{Component, LARGEST_RANK, LoraConfig, Targets, UpdateKind};
use catelier_numerics::optim::AdamWConfig;
use catelier_numerics::schedule::{Curve, LearningRate};
use catelier_prompts::CatCondition;
use serde::{Deserialize, Serialize};

use super::TrainError;
use crate::diffusion::TimestepSampling;

/// Which terms the objective has besides denoising the training images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Contrastive Adapter Training: without the trigger, hold the adapted prediction to the frozen base's.
    Cat,
    /// Denoising alone.
    Lora,
    /// DreamBooth: also denoise images of the class that the base generated.
    Dreambooth,
}

/// How a step takes the latents of an image from the autoencoder's distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentDraw {
    /// A fresh sample in every step.
    Sample,
    /// The mean.
    Mode,
}

/// Every setting that decides the bits of a training run.
///
/// The same `TrainConfig`, base, images and start adapter give the same adapter on CPU, at any thread count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The objective.
    pub loss: LossKind,
    /// Weight of the CAT term; 0 gives the bits of plain LoRA.
    pub cat_weight: f64,
    /// Which caption conditions the CAT term.
    pub cat_condition: CatCondition,
    /// Share of samples, 0..=1, whose CAT term is conditioned on the empty caption. Guidance multiplies the drift of
    /// the prediction under that caption.
    pub cat_empty_share: f64,
    /// One batch in `cat_every` has the CAT term, with `cat_every` times its weight, so the expected gradient stays the
    /// same. 1 gives every batch the term.
    pub cat_every: usize,
    /// Number of draws of noise and timestep per image that training reuses; the base's predictions for them are
    /// cached. 0 draws anew in every step.
    #[serde(alias = "cat_bank")]
    pub cat_cached_draws: usize,
    /// Weight of the class images' term of [`LossKind::Dreambooth`].
    pub prior_weight: f64,
    /// Gamma of min-SNR weighting (usually 5); `None` weights all timesteps equally.
    pub min_snr_gamma: Option<f64>,
    /// Kind of the adapter's updates.
    #[serde(default)]
    pub kind: UpdateKind,
    /// Rank of every update.
    pub rank: usize,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
    /// Probability of dropping an input element of the adapter, 0..1.
    pub dropout: f64,
    /// Which modules are adapted.
    pub targets: Targets,
    /// Whether the targets also select modules of the text encoders, which are then trained with the UNet.
    #[serde(default)]
    pub train_text_encoder: bool,
    /// Optimizer steps.
    pub steps: usize,
    /// Images per forward pass.
    pub batch: usize,
    /// Forward passes per optimizer step.
    pub accumulation: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Peak learning rate of the text encoders' parameters, on the same schedule; `None` takes `learning_rate`.
    #[serde(default)]
    pub text_encoder_learning_rate: Option<f64>,
    /// Shape of the learning rate over the run.
    pub schedule: Curve,
    /// Steps of linear warm-up before the schedule.
    pub warmup_steps: usize,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the adapter's whole gradient; 0 does not clip.
    pub max_grad_norm: f64,
    /// Decay of the moving average that is saved in place of the last parameters; `None` keeps no average.
    pub ema_decay: Option<f64>,
    /// How latents are drawn.
    pub latents: LatentDraw,
    /// How timesteps are drawn.
    pub timestep_sampling: TimestepSampling,
    /// Seed of every draw of the run.
    pub seed: u64,
}

impl Default for TrainConfig {
    /// A CAT run on Stable Diffusion with the settings of the paper (arXiv 2404.07554: rate 1e-4, 900 steps, weight 1),
    /// but rank 8 in place of 1.
    fn default() -> Self {
        Self {
            loss: LossKind::Cat,
            cat_weight: 1.0,
            cat_condition: CatCondition::Caption,
            cat_empty_share: 0.0,
            cat_every: 1,
            cat_cached_draws: 0,
            prior_weight: 1.0,
            min_snr_gamma: None,
            kind: UpdateKind::Lora,
            rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::attention(),
            train_text_encoder: false,
            steps: 900,
            batch: 1,
            accumulation: 1,
            learning_rate: 1e-4,
            text_encoder_learning_rate: None,
            schedule: Curve::Constant,
            warmup_steps: 0,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            ema_decay: None,
            latents: LatentDraw::Sample,
            timestep_sampling: TimestepSampling::Uniform,
            seed: 42,
        }
    }
}

impl TrainConfig {
    /// Refuses values that cannot train.
    ///
    /// # Errors
    /// [`TrainError::Setting`] names the first setting, its value and the rule.
    pub fn validate(&self) -> Result<(), TrainError> {
        whole("steps", self.steps, 1, 1_000_000_000)?;
        whole("batch", self.batch, 1, 4096)?;
        whole("accumulation", self.accumulation, 1, 65_536)?;
        whole("rank", self.rank, 1, LARGEST_RANK)?;
        whole("cat_every", self.cat_every, 1, 1_000_000)?;
        whole("cat_cached_draws", self.cat_cached_draws, 0, 65_536)?;
        whole("warmup_steps", self.warmup_steps, 0, 1_000_000_000)?;
        positive("learning_rate", self.learning_rate)?;
        positive("text_encoder_learning_rate", self.text_encoder_learning_rate.unwrap_or(1.0))?;
        positive("alpha", self.alpha)?;
        within("cat_weight", self.cat_weight, 0.0, f64::MAX)?;
        within("prior_weight", self.prior_weight, 0.0, f64::MAX)?;
        within("cat_empty_share", self.cat_empty_share, 0.0, 1.0)?;
        within("dropout", self.dropout, 0.0, 0.99)?;
        within("weight_decay", self.weight_decay, 0.0, f64::MAX)?;
        within("max_grad_norm", self.max_grad_norm, 0.0, f64::MAX)?;
        within("ema_decay", self.ema_decay.unwrap_or(0.0), 0.0, 0.999_999)?;
        positive("min_snr_gamma", self.min_snr_gamma.unwrap_or(1.0))?;
        self.validate_text_encoder()?;
        self.validate_schedule()?;
        self.validate_cached_draws()
    }

    fn validate_text_encoder(&self) -> Result<(), TrainError> {
        match self.text_encoder_learning_rate {
            Some(rate) if !self.train_text_encoder => {
                Err(TrainError::setting("text_encoder_learning_rate", rate, "needs `train_text_encoder`"))
            }
            _ => Ok(()),
        }
    }

    fn validate_schedule(&self) -> Result<(), TrainError> {
        match self.schedule {
            Curve::CosineWithRestarts { cycles } => whole("schedule.cycles", cycles as usize, 1, 1_000_000_000),
            Curve::Polynomial { power, end } => {
                positive("schedule.power", power)?;
                let lowest = self.peak_learning_rate(Component::TextEncoder).min(self.learning_rate);
                within("schedule.end", end, 0.0, lowest)
            }
            _ => Ok(()),
        }
    }

    /// A cached prediction of the base is used whenever its draw comes again, so caption and timestep must be the same
    /// each time.
    fn validate_cached_draws(&self) -> Result<(), TrainError> {
        let refuse = |rule| Err(TrainError::setting("cat_cached_draws", self.cat_cached_draws, rule));
        match self.cat_cached_draws {
            0 => Ok(()),
            _ if self.cat_empty_share > 0.0 => refuse("must be 0 where `cat_empty_share` is not"),
            _ if self.timestep_sampling != TimestepSampling::Uniform => refuse("needs uniform timesteps"),
            _ => Ok(()),
        }
    }

    /// Whether the objective has the CAT term.
    pub fn uses_cat(&self) -> bool {
        self.loss == LossKind::Cat && self.cat_weight > 0.0
    }

    /// Weight of the CAT term in batch `draw`, or `None` where the batch does not have the term.
    pub(super) fn cat_weight_at(&self, draw: usize) -> Option<f64> {
        if self.uses_cat() { weight_at(draw, self.cat_every, self.cat_weight) } else { None }
    }

    /// Whether a step needs images of the class, generated by the base: a DreamBooth run with a positive prior weight.
    pub fn uses_prior(&self) -> bool {
        self.loss == LossKind::Dreambooth && self.prior_weight > 0.0
    }

    /// Rank, alpha, dropout and targets of the adapter to initialise.
    pub fn lora(&self) -> LoraConfig {
        LoraConfig { rank: self.rank, alpha: self.alpha, dropout: self.dropout, targets: self.targets.clone() }
    }

    /// AdamW's constants.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig { weight_decay: self.weight_decay, ..AdamWConfig::default() }
    }

    /// The learning rate of a component's parameters as a function of the step.
    pub fn learning_rate_of(&self, component: Component) -> LearningRate {
        LearningRate {
            curve: self.schedule,
            base: self.peak_learning_rate(component),
            warmup_steps: self.warmup_steps,
            total_steps: self.steps,
        }
    }

    fn peak_learning_rate(&self, component: Component) -> f64 {
        match component {
            Component::Unet => self.learning_rate,
            Component::TextEncoder | Component::TextEncoder2 => {
                self.text_encoder_learning_rate.unwrap_or(self.learning_rate)
            }
        }
    }
}

fn whole(setting: &'static str, value: usize, least: usize, most: usize) -> Result<(), TrainError> {
    if !(least..=most).contains(&value) {
        return Err(TrainError::setting(setting, value, format!("must lie in {least}..={most}")));
    }
    Ok(())
}

fn positive(setting: &'static str, value: f64) -> Result<(), TrainError> {
    if !(value.is_finite() && value > 0.0) {
        return Err(TrainError::setting(setting, value, "must be a positive number"));
    }
    Ok(())
}

fn within(setting: &'static str, value: f64, low: f64, high: f64) -> Result<(), TrainError> {
    if !(value.is_finite() && (low..=high).contains(&value)) {
        let rule = match high {
            f64::MAX => format!("must be at least {low}"),
            _ => format!("must lie in {low}..={high}"),
        };
        return Err(TrainError::setting(setting, value, rule));
    }
    Ok(())
}

/// Weight in batch `draw` of a term that one batch in `every` has; `None` in the other batches. The mean over all
/// batches is `weight`, so the expected gradient is the same as with the term in every batch.
fn weight_at(draw: usize, every: usize, weight: f64) -> Option<f64> {
    draw.is_multiple_of(every).then_some(weight * every as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_of_some_batches_has_the_same_weight_on_average() {
        for every in 1..=6 {
            let weights: Vec<f64> = (0..60).filter_map(|draw| weight_at(draw, every, 0.5)).collect();
            assert_eq!((weights.len(), weights.iter().sum()), (60 / every, 30.0), "every {every}");
        }
    }
}
