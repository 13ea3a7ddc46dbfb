//! The settings of a training run.

use std::path::{Path, PathBuf};

use catelier_adapters::file::Format;
use catelier_adapters::{Targets, UpdateKind};
use catelier_numerics::schedule::Curve;
use catelier_pipelines::data::Crop;
use catelier_pipelines::diffusion::TimestepSampling;
use catelier_pipelines::training::{LatentDraw, LossKind, TrainConfig};
use catelier_prompts::CatCondition;

#[cfg(feature = "clap")]
use super::named;
use super::{Preset, settings};
use crate::device::{DeviceChoice, WeightType};
use crate::error::{Context, Error, Result};
use crate::output;
use crate::value::{MemoryLimit, Text};

settings! {
    /// What a training run is asked to do, as a user states it: kebab-case as flags, snake_case in a run file.
    TrainSettings
    /// The settings of a training run; an `Option` is `None` where the run goes without.
    ResolvedTrain {
        /// Folder of images with .txt, .caption or metadata.jsonl captions
        #[arg(long, value_name = "DIR")]
        images: PathBuf => PathBuf,
        /// The word that calls the style; put in front of captions that lack it
        #[arg(long, value_name = "WORD")]
        trigger: String => String,
        /// The class of the subject, for example "a dog"
        #[arg(long, value_name = "TEXT")]
        class: String => Option<String>,
        /// Caption of images that have none
        #[arg(long, value_name = "TEXT")]
        caption: String => Option<String>,
        /// embedded, a diffusers folder or a hub id [default: embedded]
        #[arg(long, value_name = "BASE")]
        base: String => String,
        /// Start from the settings that somebody published: cat-paper, those of Contrastive Adapter Training; flags and keys of
        /// the run file go before them [default: none]
        #[arg(long, value_parser = named::<Preset>(), value_name = "NAME")]
        preset: Preset => Option<Preset>,
        /// The objective [default: cat]
        #[arg(long, value_parser = named::<LossKind>(), value_name = "NAME")]
        loss: LossKind => LossKind,
        /// Weight of the CAT term; 0 is plain LoRA [default: 1]
        #[arg(long, value_name = "F")]
        cat_weight: f64 => f64,
        /// Prompt for which the CAT term holds the adapter to the base: the caption without the trigger, the class or the
        /// empty prompt [default: caption]
        #[arg(long, value_parser = named::<CatCondition>(), value_name = "NAME")]
        cat_condition: CatCondition => CatCondition,
        /// Share of samples, 0 to 1, that have the empty prompt in the CAT term instead [default: 0]
        #[arg(long, value_name = "F")]
        cat_empty_share: f64 => f64,
        /// Compute the CAT term in every N-th batch, N times as strong: cheaper and noisier [default: 1]
        #[arg(long, value_name = "N")]
        cat_every: usize => usize,
        /// Draw N pairs of noise and timestep for each image and train on these alone; the base's predictions for them are
        /// cached, which saves its pass. 0 draws new noise in every step and caches nothing [default: 0]
        #[serde(alias = "cat_bank")]
        #[arg(long, alias = "cat-bank", value_name = "N")]
        cat_cached_draws: usize => usize,
        /// Weight of the class images in the dreambooth loss [default: 1]
        #[arg(long, value_name = "F")]
        prior_weight: f64 => f64,
        /// Class images that the base generates for the dreambooth loss [default: 20]
        #[serde(alias = "class_pictures")]
        #[arg(long, alias = "class-pictures", value_name = "N")]
        class_images: usize => usize,
        /// Weight timesteps by min(SNR, gamma); 5 is usual [default: off]
        #[arg(long, value_name = "F")]
        min_snr_gamma: f64 => Option<f64>,
        /// Kind of the adapter: lora, or dora with a trained magnitude for each output of a layer [default: lora]
        #[arg(long, value_parser = named::<UpdateKind>(), value_name = "NAME")]
        kind: UpdateKind => UpdateKind,
        /// Rank of the adapter [default: 8]
        #[arg(long, value_name = "N")]
        rank: usize => usize,
        /// The update is scaled by alpha / rank [default: rank]
        #[arg(long, value_name = "F")]
        alpha: f64 => f64,
        /// Dropout on the adapter's input [default: 0]
        #[arg(long, value_name = "F")]
        dropout: f64 => f64,
        /// attention, linears, convolutions, everything, or patterns separated by commas [default: everything for the
        /// embedded base, attention for others]
        #[arg(long, value_name = "NAMES")]
        targets: Targets => Targets,
        /// Also train the adapter in the text encoder (of SDXL, in both), on the modules there that the targets name [default:
        /// false]
        #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        train_text_encoder: bool => bool,
        /// Optimizer steps [default: 200 for the embedded base, 900 for others]
        #[arg(long, value_name = "N")]
        steps: usize => usize,
        /// Peak learning rate [default: 1.5e-3 for the embedded base, 1e-4 for others]
        #[arg(long, value_name = "F")]
        learning_rate: f64 => f64,
        /// Peak learning rate of the text encoder's parameters [default: the learning rate]
        #[arg(long, value_name = "F")]
        text_encoder_learning_rate: f64 => Option<f64>,
        /// Shape of the learning rate after the warm-up [default: cosine for the embedded base, constant for others]
        #[arg(long, value_parser = named::<Curve>(), value_name = "NAME")]
        schedule: Curve => Curve,
        /// Steps of linear warm-up [default: 0]
        #[arg(long, value_name = "N")]
        warmup_steps: usize => usize,
        /// Images in a forward pass [default: 4 for the embedded base, 1 for others]
        #[arg(long, value_name = "N")]
        batch: usize => usize,
        /// Forward passes in an optimizer step [default: 1]
        #[arg(long, value_name = "N")]
        accumulation: usize => usize,
        /// AdamW's weight decay [default: 0.01]
        #[arg(long, value_name = "F")]
        weight_decay: f64 => f64,
        /// Clip the adapter's gradient to this norm; 0 does not clip [default: 1]
        #[arg(long, value_name = "F")]
        max_grad_norm: f64 => f64,
        /// Save a moving average of the adapter with this decay [default: off]
        #[arg(long, value_name = "F")]
        ema_decay: f64 => Option<f64>,
        /// How timesteps are drawn: each alone, or spread over the batch [default: uniform]
        #[arg(long, value_parser = named::<TimestepSampling>(), value_name = "NAME")]
        timesteps: TimestepSampling => TimestepSampling,
        /// Side of the training images in pixels, a multiple of 8 [default: the side that the base was trained at]
        #[arg(long, value_name = "PX")]
        resolution: usize => usize,
        /// The part of an image that is kept where it is not square [default: center]
        #[arg(long, value_parser = named::<Crop>(), value_name = "NAME")]
        crop: Crop => Crop,
        /// Also train on the mirrored images [default: false]
        #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        flip: bool => bool,
        /// Memory that training may take, such as 8GB; blocks are recomputed in the backward pass instead of kept until it
        /// fits [default: auto, nine tenths of the memory that is left]
        #[arg(long, value_name = "SIZE")]
        memory_limit: Text<MemoryLimit> => Text<MemoryLimit>,
        /// Recompute all blocks in the backward pass to save memory, or none [default: as the memory limit asks]
        #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
        gradient_checkpointing: bool => Option<bool>,
        /// Generate a preview every N steps; 0 generates none [default: 0]
        #[arg(long, value_name = "N")]
        preview_every: usize => usize,
        /// Prompt of the previews; {trigger} and {class} are replaced [default: {trigger}]
        #[arg(long, value_name = "TEXT")]
        preview_prompt: String => String,
        /// Save the state every N steps [default: 50]
        #[arg(long, value_name = "N")]
        save_every: usize => usize,
        /// Measure the drift from the base on held-out prompts every N steps; 0 does not measure it [default: 25]
        #[arg(long, value_name = "N")]
        drift_every: usize => usize,
        /// Seed of every random draw [default: 42]
        #[arg(long, value_name = "N")]
        seed: u64 => u64,
        /// auto, cpu or cuda:N [default: auto]
        #[arg(long, value_name = "DEVICE")]
        device: DeviceChoice => DeviceChoice,
        /// Type of the base's weights [default: f32]
        #[arg(long, value_parser = named::<WeightType>(), value_name = "DTYPE")]
        dtype: WeightType => WeightType,
        /// Key names of the adapter file [default: kohya]
        #[arg(long, value_parser = named::<Format>(), value_name = "NAME")]
        format: Format => Format,
    }
}

/// Settings that may change when a run is resumed: how long it goes on, how it is watched, and what changes no bit.
pub(crate) const FREE_ON_RESUME: [&str; 8] = [
    "steps",
    "save_every",
    "preview_every",
    "preview_prompt",
    "drift_every",
    "device",
    "memory_limit",
    "gradient_checkpointing",
];

impl TrainSettings {
    /// Refuses settings that lack what no default can give.
    ///
    /// # Errors
    /// [`Error::User`] when `images` or `trigger` is not set, or a run file could not name `images`.
    pub fn check_required(&self) -> Result<()> {
        let images = required("images", self.images.as_ref())?;
        output::check_utf8(images, "run.toml")?;
        required("trigger", self.trigger.as_ref())?;
        Ok(())
    }

    /// The base's name, stated or not.
    pub fn base_name(&self) -> &str {
        self.base.as_deref().unwrap_or(crate::base::EMBEDDED)
    }
}

/// The value of a setting that no default can give.
pub(crate) fn required<T>(setting: &str, value: Option<T>) -> Result<T> {
    let flag = setting.replace('_', "-");
    let unset = || {
        let hint = format!("give `--{flag}`, or `{setting} = …` in the run file");
        Error::user(format!("`{setting}` is not set"), hint)
    };
    value.ok_or_else(unset)
}

impl ResolvedTrain {
    /// The settings that decide the bits of the run.
    pub fn config(&self) -> TrainConfig {
        TrainConfig {
            loss: self.loss,
            cat_weight: self.cat_weight,
            cat_condition: self.cat_condition,
            cat_empty_share: self.cat_empty_share,
            cat_every: self.cat_every,
            cat_cached_draws: self.cat_cached_draws,
            prior_weight: self.prior_weight,
            min_snr_gamma: self.min_snr_gamma,
            kind: self.kind,
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.clone(),
            train_text_encoder: self.train_text_encoder,
            steps: self.steps,
            batch: self.batch,
            accumulation: self.accumulation,
            learning_rate: self.learning_rate,
            text_encoder_learning_rate: self.text_encoder_learning_rate,
            schedule: self.schedule,
            warmup_steps: self.warmup_steps,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            ema_decay: self.ema_decay,
            latents: LatentDraw::Sample,
            timestep_sampling: self.timesteps,
            seed: self.seed,
        }
    }

    /// The settings as an adapter's metadata has them: without what names files of this machine.
    ///
    /// # Errors
    /// [`Error::Failed`] when they cannot be written as JSON.
    pub(crate) fn for_metadata(&self) -> Result<serde_json::Value> {
        let mut value = serde_json::to_value(self).failed("cannot describe the settings")?;
        if let Some(settings) = value.as_object_mut() {
            settings.shift_remove("images");
            if Path::new(&self.base).exists() {
                settings.shift_remove("base");
            }
            settings.retain(|_, value| !value.is_null());
        }
        Ok(value)
    }
}
