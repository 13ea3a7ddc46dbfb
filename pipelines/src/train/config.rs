//! What a training run is asked to do, validated before anything heavy is loaded.

use catelier_adapters::{LoraConfig, Targets, UpdateKind};
use catelier_numerics::optim::AdamWConfig;
use catelier_numerics::schedule::{Kind, LearningRate};
use catelier_prompts::CatCondition;
use serde::{Deserialize, Serialize};

use super::TrainError;
use crate::diffusion::TimestepSampling;

/// Which terms the objective has besides denoising the artist's pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Contrastive Adapter Training: hold the prediction without the trigger to the frozen base's.
    Cat,
    /// Denoising alone.
    Lora,
    /// DreamBooth: denoise class pictures that the base itself drew.
    Dreambooth,
}

/// Shape of the learning rate after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Curve {
    /// Stays at the peak.
    Constant,
    /// Falls in a straight line to 0.
    Linear,
    /// Falls along half a cosine to 0.
    Cosine,
}

/// How the latents of a picture are taken from the autoencoder's distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentDraw {
    /// A fresh sample every step.
    Sample,
    /// Its mean.
    Mode,
}

/// Everything that decides the bits of a training run, apart from the base and the pictures.
///
/// The same `TrainConfig`, base and pictures give the same adapter on CPU, at any thread count.
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
    /// Only every so many batches have the CAT term, at so many times its weight, so that the expected gradient is the
    /// same; 1 has it in all.
    pub cat_every: usize,
    /// Draws (noise and timestep) of each picture that training goes through again and again, with the base's predictions
    /// of them kept; 0 draws anew each time.
    pub cat_bank: usize,
    /// Weight of the class pictures of [`LossKind::Dreambooth`].
    pub prior_weight: f64,
    /// Min-SNR gamma (5 is usual); `None` weights all timesteps alike.
    pub min_snr_gamma: Option<f64>,
    /// Kind of the adapter's updates. LoRA goes unsaid, so that the states of older versions can be resumed.
    #[serde(default, skip_serializing_if = "is_lora")]
    pub kind: UpdateKind,
    /// Rank of every update.
    pub rank: usize,
    /// The update is scaled by alpha / rank.
    pub alpha: f64,
    /// Probability of dropping an input of the adapter, 0..1.
    pub dropout: f64,
    /// Which modules are adapted.
    pub targets: Targets,
    /// Optimizer steps.
    pub steps: usize,
    /// Pictures per forward pass.
    pub batch: usize,
    /// Forward passes per optimizer step.
    pub accumulation: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
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
        positive("alpha", self.alpha)?;
        within("cat_weight", self.cat_weight, 0.0, f64::MAX)?;
        within("prior_weight", self.prior_weight, 0.0, f64::MAX)?;
        within("cat_empty_share", self.cat_empty_share, 0.0, 1.0)?;
        within("dropout", self.dropout, 0.0, 0.99)?;
        within("weight_decay", self.weight_decay, 0.0, f64::MAX)?;
        within("max_grad_norm", self.max_grad_norm, 0.0, f64::MAX)?;
        within("ema_decay", self.ema_decay.unwrap_or(0.0), 0.0, 0.999_999)?;
        positive("min_snr_gamma", self.min_snr_gamma.unwrap_or(1.0))?;
        self.validate_bank()
    }

    /// The base's prediction of a place in the bank must be the same whenever it is drawn.
    fn validate_bank(&self) -> Result<(), TrainError> {
        let refuse = |rule| Err(TrainError::setting("cat_bank", self.cat_bank, rule));
        match self.cat_bank {
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

    /// Weight of the CAT term in batch `draw`, where it is taken.
    pub(super) fn cat_weight_at(&self, draw: usize) -> Option<f64> {
        if self.uses_cat() { taken_at(draw, self.cat_every, self.cat_weight) } else { None }
    }

    /// Whether a step needs pictures of the class drawn by the base.
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

    /// The learning rate as a function of the step.
    pub fn learning_rate_curve(&self) -> LearningRate {
        LearningRate {
            kind: self.schedule.kind(),
            base: self.learning_rate,
            warmup_steps: self.warmup_steps,
            total_steps: self.steps,
        }
    }
}

impl Curve {
    fn kind(self) -> Kind {
        match self {
            Self::Constant => Kind::Constant,
            Self::Linear => Kind::Linear,
            Self::Cosine => Kind::Cosine,
        }
    }
}

fn is_lora(kind: &UpdateKind) -> bool {
    *kind == UpdateKind::Lora
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

/// The weight in batch `draw` of a term that is taken in every so many. Its mean over the batches is `weight`: the expected
/// gradient is that of taking the term in each.
fn taken_at(draw: usize, every: usize, weight: f64) -> Option<f64> {
    draw.is_multiple_of(every).then_some(weight * every as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_that_is_taken_now_and_then_weighs_as_much_on_average() {
        for every in 1..=6 {
            let weights: Vec<f64> = (0..60).filter_map(|draw| taken_at(draw, every, 0.5)).collect();
            assert_eq!((weights.len(), weights.iter().sum()), (60 / every, 30.0), "every {every}");
        }
    }
}
