//! Settings by name: those that others published.

use catelier_adapters::Targets;
use catelier_numerics::schedule::Curve;
use catelier_pipelines::data::Crop;
use catelier_pipelines::training::LossKind;
use catelier_prompts::CatCondition;
use serde::{Deserialize, Serialize};

use super::TrainSettings;

/// A named set of settings, below whatever a run file or a flag states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// The settings of the CAT paper's released runs for one concept on Stable Diffusion 1.5 (arXiv 2404.07554, configuration
    /// files of the authors' repository): rank 1 on the attention layers, 900 steps of one image at 1e-4, images mirrored and
    /// cropped at random, weight 1. Their code clips the frozen model's gradients, which has no effect, so that nothing is
    /// clipped here.
    CatPaper,
}

impl Preset {
    pub(super) fn settings(self) -> TrainSettings {
        let Self::CatPaper = self;
        TrainSettings {
            loss: Some(LossKind::Cat),
            cat_weight: Some(1.0),
            cat_condition: Some(CatCondition::Caption),
            rank: Some(1),
            alpha: Some(1.0),
            targets: Some(Targets::default()),
            steps: Some(900),
            learning_rate: Some(1e-4),
            schedule: Some(Curve::Constant),
            warmup_steps: Some(0),
            batch: Some(1),
            accumulation: Some(1),
            weight_decay: Some(0.01),
            max_grad_norm: Some(0.0),
            crop: Some(Crop::Random),
            flip: Some(true),
            ..TrainSettings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::BaseDefaults;

    #[test]
    fn a_preset_is_below_what_is_stated_and_above_the_defaults() {
        let settings = TrainSettings {
            images: Some("art".into()),
            trigger: Some("shs".into()),
            preset: Some(Preset::CatPaper),
            rank: Some(4),
            ..TrainSettings::default()
        };
        let resolved = settings.resolve(&BaseDefaults { is_embedded: true, resolution: 64 }).unwrap();
        assert_eq!((resolved.rank, resolved.steps, resolved.learning_rate, resolved.batch), (4, 900, 1e-4, 1));
        assert!(resolved.flip && resolved.crop == Crop::Random);
    }
}
