//! Every default of every setting.

use catelier_adapters::Targets;
use catelier_adapters::file::Format;
use catelier_federation::{HeadRule, Strategy};
use catelier_numerics::schedule::Curve;
use catelier_pipelines::data::Crop;
use catelier_pipelines::diffusion::TimestepSampling;
use catelier_pipelines::generation::GenerateRequest;
use catelier_pipelines::training::LossKind;
use catelier_prompts::CatCondition;
use catelier_style::federated::{FedStyleParts, Method};

use super::train::required;
use super::{
    ResolvedRound, ResolvedSampling, ResolvedSimulate, ResolvedStyleTrain, ResolvedTrain, RoundSettings,
    SamplingSettings, Settings, SimulateSettings, StyleTrainSettings, TrainSettings, VERSION,
};
use crate::error::{Context, Error, Result};
use crate::value::{ImageSize, Text};

/// Seed of trainings and images.
const SEED: u64 = 42;
/// Seed of what is played on drawn artists.
pub(crate) const PLAY_SEED: u64 = 1;

/// Rank of an adapter.
const RANK: usize = 8;

/// Artists of a demo: one near the house style, one far from it.
pub(crate) const DEMO_ARTISTS: [&str; 2] = ["wash", "goldleaf"];
/// Training images of a demo and of each artist of a simulated federation.
pub(crate) const PLAY_IMAGES: usize = 10;
/// Evaluation prompts of each kind in a demo.
pub(crate) const DEMO_PROMPTS: usize = 4;
/// Trigger of a demo: a word without a meaning, as artists choose one.
pub(crate) const DEMO_TRIGGER: &str = "shs";

/// Artists of a simulated federation.
const ARTISTS: [&str; 3] = ["blueprint", "goldleaf", "poster"];

/// How a style model is trained: of the methods with one model for all, the best measured (docs/experiments/style.md).
const STYLE_METHOD: Method = Method::Fedstyle(FedStyleParts { public: false, ..FedStyleParts::ALL });

/// What defaults depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseDefaults {
    /// Whether the base is the tiny one of [`embedded`](crate::embedded).
    pub is_embedded: bool,
    /// The side in pixels of the images that the base was trained at.
    pub resolution: usize,
}

/// Defaults of a training that depend on the base.
struct TrainingDefaults {
    targets: Targets,
    steps: usize,
    learning_rate: f64,
    schedule: Curve,
    batch: usize,
}

impl BaseDefaults {
    /// For the embedded base, the way to train that docs/trade-off.md found best; for real Stable Diffusion, the CAT authors'
    /// (arXiv 2404.07554: attention layers, constant rate 1e-4, 900 steps of one image).
    fn training(&self) -> TrainingDefaults {
        if self.is_embedded {
            let targets = Targets::everything();
            TrainingDefaults { targets, steps: 200, learning_rate: 1.5e-3, schedule: Curve::Cosine, batch: 4 }
        } else {
            let targets = Targets::default();
            TrainingDefaults { targets, steps: 900, learning_rate: 1e-4, schedule: Curve::Constant, batch: 1 }
        }
    }

    /// Guidance: what docs/trade-off.md found best for the embedded base, or the usual one of Stable Diffusion.
    fn guidance(&self) -> f64 {
        if self.is_embedded { 2.0 } else { GenerateRequest::default().guidance }
    }
}

impl TrainSettings {
    /// The settings with every default filled in, checked.
    ///
    /// The CAT weight is the CAT authors' (arXiv 2404.07554: weight 1); rank 8 replaces their 1.
    ///
    /// # Errors
    /// [`Error::User`] when images or trigger are not set, or a value is out of its range.
    pub fn resolve(self, base: &BaseDefaults) -> Result<ResolvedTrain> {
        let preset = self.preset;
        match preset {
            Some(preset) => self.over(preset.settings()).complete(base),
            None => self.complete(base),
        }
    }

    /// These settings with the defaults below them, checked.
    fn complete(self, base: &BaseDefaults) -> Result<ResolvedTrain> {
        let usual = base.training();
        let rank = self.rank.unwrap_or(RANK);
        let resolved = ResolvedTrain {
            version: VERSION,
            images: required("images", self.images)?,
            trigger: required("trigger", self.trigger)?,
            class: self.class,
            caption: self.caption,
            preset: self.preset,
            base: self.base.unwrap_or_else(|| crate::base::EMBEDDED.into()),
            loss: self.loss.unwrap_or(LossKind::Cat),
            cat_weight: self.cat_weight.unwrap_or(1.0),
            cat_condition: self.cat_condition.unwrap_or(CatCondition::Caption),
            cat_empty_share: self.cat_empty_share.unwrap_or(0.0),
            cat_every: self.cat_every.unwrap_or(1),
            cat_cached_draws: self.cat_cached_draws.unwrap_or(0),
            prior_weight: self.prior_weight.unwrap_or(1.0),
            class_images: self.class_images.unwrap_or(20),
            min_snr_gamma: self.min_snr_gamma,
            kind: self.kind.unwrap_or_default(),
            rank,
            alpha: self.alpha.unwrap_or(rank as f64),
            dropout: self.dropout.unwrap_or(0.0),
            targets: self.targets.unwrap_or(usual.targets),
            train_text_encoder: self.train_text_encoder.unwrap_or(false),
            steps: self.steps.unwrap_or(usual.steps),
            learning_rate: self.learning_rate.unwrap_or(usual.learning_rate),
            text_encoder_learning_rate: self.text_encoder_learning_rate,
            schedule: self.schedule.unwrap_or(usual.schedule),
            warmup_steps: self.warmup_steps.unwrap_or(0),
            batch: self.batch.unwrap_or(usual.batch),
            accumulation: self.accumulation.unwrap_or(1),
            weight_decay: self.weight_decay.unwrap_or(0.01),
            max_grad_norm: self.max_grad_norm.unwrap_or(1.0),
            ema_decay: self.ema_decay,
            timesteps: self.timesteps.unwrap_or(TimestepSampling::Uniform),
            resolution: self.resolution.unwrap_or(base.resolution),
            crop: self.crop.unwrap_or(Crop::Centre),
            flip: self.flip.unwrap_or(false),
            memory_limit: self.memory_limit.unwrap_or_default(),
            gradient_checkpointing: self.gradient_checkpointing,
            preview_every: self.preview_every.unwrap_or(0),
            preview_prompt: self.preview_prompt.unwrap_or_else(|| "{trigger}".into()),
            save_every: self.save_every.unwrap_or(50),
            drift_every: self.drift_every.unwrap_or(25),
            seed: self.seed.unwrap_or(SEED),
            device: self.device.unwrap_or_default(),
            dtype: self.dtype.unwrap_or_default(),
            format: self.format.unwrap_or_default(),
        };
        resolved.config().validate().user_error("the settings cannot be used")?;
        if resolved.train_text_encoder && resolved.format == Format::Peft {
            return Err(Error::user(
                "a PEFT file holds the adapter of one model, and `train_text_encoder` trains several",
                "use `--format kohya` or `--format diffusers`",
            ));
        }
        Ok(resolved)
    }
}

impl SamplingSettings {
    /// The settings with every default filled in.
    pub fn resolve(self, base: &BaseDefaults) -> ResolvedSampling {
        let usual = GenerateRequest::default();
        ResolvedSampling {
            version: VERSION,
            steps: self.steps.unwrap_or(usual.steps),
            guidance: self.guidance.unwrap_or(base.guidance()),
            guidance_from: self.guidance_from.unwrap_or_default(),
            guidance_range: self.guidance_range.unwrap_or_default(),
            sampler: self.sampler.unwrap_or(Text(usual.sampler)),
            negative: self.negative.unwrap_or_default(),
            seed: self.seed.unwrap_or(SEED),
            size: self.size.unwrap_or(Text(ImageSize::square(base.resolution))),
            tile_vae: self.tile_vae.unwrap_or_default(),
        }
    }
}

impl RoundSettings {
    /// The settings with every default filled in.
    pub fn resolve(self) -> ResolvedRound {
        ResolvedRound {
            version: VERSION,
            strategy: self.strategy.unwrap_or(Text(Strategy::product())),
            rounds: self.rounds.unwrap_or(10),
            quorum: self.quorum.unwrap_or(2),
            deadline_hours: self.deadline_hours.unwrap_or(48.0),
            weighting: self.weighting.unwrap_or_default(),
            participation: self.participation.unwrap_or(1.0),
            participation_seed: self.participation_seed.unwrap_or(PLAY_SEED),
            head: self.head,
            head_rule: self.head_rule.unwrap_or(HeadRule::Fedbabu),
            clip: self.clip,
            noise: self.noise.unwrap_or(0.0),
            noise_at: self.noise_at.unwrap_or_default(),
            norm_factor: self.norm_factor,
            proximal: self.proximal.unwrap_or(0.0),
            largest_mb: self.largest_mb.unwrap_or(256),
        }
    }
}

impl SimulateSettings {
    /// The settings with every default filled in.
    pub fn resolve(self) -> ResolvedSimulate {
        let artists = self.artists.unwrap_or_else(|| ARTISTS.map(str::to_string).to_vec());
        let local_steps = self.local_steps.unwrap_or(60);
        ResolvedSimulate {
            version: VERSION,
            rounds: self.rounds.unwrap_or(3),
            local_steps,
            exchange: self.exchange.unwrap_or_default(),
            public_images: self.public_images.unwrap_or(12),
            public_draws: self.public_draws.unwrap_or(8),
            distil_steps: self.distil_steps.unwrap_or(local_steps.saturating_mul(artists.len())),
            artists,
            images: self.images.unwrap_or(PLAY_IMAGES),
            loss: self.loss.unwrap_or(LossKind::Cat),
            ranks: self.ranks.unwrap_or_else(|| vec![RANK]),
            strategy: self.strategy.unwrap_or(Text(catelier_federation::Strategy::product())),
            head: self.head,
            head_rule: self.head_rule.unwrap_or(HeadRule::Fedbabu),
            tuning_steps: self.tuning_steps.unwrap_or(0),
            participation: self.participation.unwrap_or(1.0),
            weighting: self.weighting.unwrap_or_default(),
            proximal: self.proximal.unwrap_or(0.0),
            norm_factor: self.norm_factor,
            clip: self.clip,
            noise: self.noise.unwrap_or(0.0),
            noise_at: self.noise_at.unwrap_or_default(),
            drop_out: self.drop_out.unwrap_or(0.0),
            stragglers: self.stragglers.unwrap_or(0.0),
            poisoned: self.poisoned.unwrap_or(0),
            poison: self.poison.unwrap_or_default(),
            late: self.late.unwrap_or_default(),
            baselines: self.baselines.unwrap_or(false),
            score_every: self.score_every.unwrap_or(0),
            prompts: self.prompts.unwrap_or(3),
            sampling_steps: self.sampling_steps.unwrap_or(GenerateRequest::default().steps),
            seed: self.seed.unwrap_or(PLAY_SEED),
        }
    }
}

impl StyleTrainSettings {
    /// The settings with every default filled in.
    pub fn resolve(self) -> ResolvedStyleTrain {
        let federation = catelier_style::federated::Settings::default();
        ResolvedStyleTrain {
            version: VERSION,
            images: self.images,
            public: self.public,
            drawn_works: self.drawn_works.unwrap_or(16),
            drawn_public: self.drawn_public.unwrap_or(12),
            held_out: self.held_out.unwrap_or(0.375),
            methods: self.methods.unwrap_or_else(|| vec![Text(STYLE_METHOD)]),
            rounds: self.rounds.unwrap_or(federation.rounds),
            local_epochs: self.local_epochs.unwrap_or(federation.local_epochs),
            batch: self.batch.unwrap_or(federation.batch),
            learning_rate: self.learning_rate.unwrap_or(federation.learning_rate),
            width: self.width,
            strategy: self.strategy.unwrap_or(Text(federation.strategy)),
            tower: self.tower,
            pooling: self.pooling.unwrap_or_default(),
            measure_every: self.measure_every.unwrap_or(federation.measure_every),
            seed: self.seed.unwrap_or(PLAY_SEED),
        }
    }
}
