//! What a training run is asked to do, validated before anything heavy is loaded.

use catelier_adapters::{Component, LoraConfig, Targets, UpdateKind};
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
    /// Contrastive Adapter Training: hold the prediction without the trigger to the frozen base's.
    Cat,
    /// Denoising alone.
    Lora,
    /// DreamBooth: denoise class images that the base generated.
    Dreambooth,
}

/// How the latents of an image are taken from the autoencoder's distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentDraw {
    /// A fresh sample every step.
    Sample,
    /// Its mean.
    Mode,
}

/// Everything that decides the bits of a training run, apart from the base, the images and the start adapter.
///
/// The same `TrainConfig`, base, images and start give the same adapter on CPU, at any thread count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The objective.
    pub loss: LossKind,
    /// Weight of the CAT term; 0 is plain LoRA, bit for bit.
    pub cat_weight: f64,
    /// What the CAT term is conditioned on.
    pub cat_condition: CatCondition,
    /// Share of samples, 0..=1, whose CAT condition is the empty caption, because guidance multiplies its drift.
    pub cat_empty_share: f64,
    /// One batch in `cat_every` has the CAT term, at `cat_every` times its weight: the expected gradient stays the same.
    /// 1 takes the term in every batch.
    pub cat_every: usize,
    /// Draws of noise and timestep for each image. Training reuses these draws, and the base's predictions of them are
    /// cached; 0 draws anew each time.
    #[serde(alias = "cat_bank")]
    pub cat_cached_draws: usize,
    /// Weight of the class images of [`LossKind::Dreambooth`].
    pub prior_weight: f64,
    /// Min-SNR gamma (5 is usual); `None` weights all timesteps alike.
    pub min_snr_gamma: Option<f64>,
    /// Kind of the adapter's updates.
    #[serde(default)]
    pub kind: UpdateKind,
    /// Rank of every update.
    pub rank: usize,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
    /// Probability of dropping an input of the adapter, 0..1.
    pub dropout: f64,
    /// Which modules are adapted.
    pub targets: Targets,
    /// Whether the targets are looked for in the text encoders too, which are then trained together with the UNet.
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
    /// Peak learning rate of the text encoders' parameters, on the same schedule; `None` for `learning_rate`.
    #[serde(default)]
    pub text_encoder_learning_rate: Option<f64>,
    /// Shape of the learning rate over the run.
    pub schedule: Curve,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the adapter's whole gradient; 0 leaves it alone.
    pub max_grad_norm: f64,
    /// Decay of the averaged copy that is saved instead of the last one; `None` for none.
    pub ema_decay: Option<f64>,
    /// How latents are drawn.
    pub latents: LatentDraw,
    /// How timesteps are drawn.
    pub timestep_sampling: TimestepSampling,
    /// Seed of every draw of the run.
    pub seed: u64,
}

impl Default for TrainConfig {
    /// A CAT run on real Stable Diffusion as its authors train it (arXiv 2404.07554: rate 1e-4, 900 steps, weight 1), with
    /// rank 8 in place of 1.
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
        at_least_one("steps", self.steps)?;
        at_least_one("batch", self.batch)?;
        at_least_one("accumulation", self.accumulation)?;
        at_least_one("rank", self.rank)?;
        at_least_one("cat_every", self.cat_every)?;
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
        self.validate_schedule()?;
        self.validate_cached_draws()
    }

    fn validate_schedule(&self) -> Result<(), TrainError> {
        match self.schedule {
            Curve::CosineWithRestarts { cycles } => at_least_one("schedule.cycles", cycles as usize),
            Curve::Polynomial { power, end } => {
                positive("schedule.power", power)?;
                let lowest = self.peak_learning_rate(Component::TextEncoder).min(self.learning_rate);
                within("schedule.end", end, 0.0, lowest)
            }
            _ => Ok(()),
        }
    }

    /// A cached prediction of the base serves whenever its draw comes again, so everything that it depends on must too.
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

    /// Whether a step needs images of the class, generated by the base.
    pub fn uses_prior(&self) -> bool {
        self.loss == LossKind::Dreambooth && self.prior_weight > 0.0
    }

    /// The sizes of the adapter to initialise.
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

fn at_least_one(setting: &'static str, value: usize) -> Result<(), TrainError> {
    if value == 0 {
        return Err(TrainError::setting(setting, value, "must be at least 1"));
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

/// The weight in batch `draw` of a term that one batch in `every` has. The mean over the batches is `weight`, so the expected
/// gradient is the same as with the term in every batch.
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
