//! The settings of a training run: flags and run file have the same keys, flags win, and what results is complete.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use catelier_adapters::{Targets, UpdateKind};
use catelier_pipelines::diffusion::TimestepSampling;
use catelier_pipelines::train::{Curve, LatentDraw, LossKind, TrainConfig};
use catelier_prompts::CatCondition;
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::cli::{FormatName, SettingsArgs};
use crate::device;
use crate::failure::{Blame, Failure, Outcome};

/// Declares the settings once: as flags, as keys of the run file, and how one set lays over another.
macro_rules! settings {
    ($($(#[$attribute:meta])* $name:ident: $type:ty,)+) => {
        /// What `train` can be told, each optional; kebab-case as flags, snake_case in a run file.
        #[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct TrainSettings {
            $($(#[$attribute])* #[serde(skip_serializing_if = "Option::is_none")] pub(crate) $name: Option<$type>,)+
        }

        impl TrainSettings {
            /// These settings, and `below` where these say nothing.
            pub(crate) fn over(self, below: Self) -> Self {
                Self { $($name: self.$name.or(below.$name),)+ }
            }

            /// The keys that these settings state.
            pub(crate) fn stated(&self) -> Vec<&'static str> {
                let mut stated = Vec::new();
                $(if self.$name.is_some() { stated.push(stringify!($name)); })+
                stated
            }
        }
    };
}

settings! {
    /// Folder of pictures with .txt, .caption or metadata.jsonl captions
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The word that calls the style; put in front of captions that lack it
    #[arg(long, value_name = "WORD")]
    trigger: String,
    /// The class of the subject, for example "a dog"
    #[arg(long, value_name = "TEXT")]
    class: String,
    /// Caption for pictures that have none
    #[arg(long, value_name = "TEXT")]
    caption: String,
    /// embedded, a diffusers folder or a hub id [default: embedded]
    #[arg(long, value_name = "BASE")]
    base: String,
    /// cat, lora or dreambooth [default: cat]
    #[arg(long, value_name = "NAME")]
    loss: String,
    /// Weight of the CAT term; 0 is plain LoRA
    #[arg(long, value_name = "F")]
    cat_weight: f64,
    /// caption, class or empty [default: caption]
    #[arg(long, value_name = "NAME")]
    cat_condition: String,
    /// Share of CAT samples held to the base under the empty caption
    #[arg(long, value_name = "F")]
    cat_empty_share: f64,
    /// Take the CAT term in one of N batches, at N times its weight: cheaper, noisier [default: 1]
    #[arg(long, value_name = "N")]
    cat_every: usize,
    /// Reuse N draws of noise and timestep for each image, and cache the base's predictions of them; 0 draws anew each time
    /// [default: 0]
    #[arg(long, alias = "cat-bank", value_name = "N")]
    #[serde(alias = "cat_bank")]
    cat_cached_draws: usize,
    /// Weight of the class pictures of the dreambooth loss [default: 1]
    #[arg(long, value_name = "F")]
    prior_weight: f64,
    /// Class pictures that the base draws for the dreambooth loss [default: 20]
    #[arg(long, value_name = "N")]
    class_pictures: usize,
    /// Weight timesteps by min(SNR, gamma); 5 is usual [default: off]
    #[arg(long, value_name = "F")]
    min_snr_gamma: f64,
    /// lora or dora [default: lora]
    #[arg(long, value_name = "NAME")]
    kind: String,
    /// Rank of the adapter
    #[arg(long, value_name = "N")]
    rank: usize,
    /// The update is scaled by alpha / rank [default: rank]
    #[arg(long, value_name = "F")]
    alpha: f64,
    /// Dropout on the adapter's input [default: 0]
    #[arg(long, value_name = "F")]
    dropout: f64,
    /// attention, linears, convolutions, everything, or patterns separated by commas [default: attention]
    #[arg(long, value_name = "NAMES")]
    targets: String,
    /// Also train the adapter in the text encoder (of SDXL, in both), on the modules there that the targets name
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    train_text_encoder: bool,
    /// Optimizer steps
    #[arg(long, value_name = "N")]
    steps: usize,
    /// Peak learning rate
    #[arg(long, value_name = "F")]
    learning_rate: f64,
    /// Peak learning rate of the text encoder's parameters [default: the learning rate]
    #[arg(long, value_name = "F")]
    text_encoder_learning_rate: f64,
    /// constant, linear or cosine [default: constant]
    #[arg(long, value_name = "NAME")]
    schedule: String,
    /// Steps of linear warm-up [default: 0]
    #[arg(long, value_name = "N")]
    warmup_steps: usize,
    /// Pictures per forward pass
    #[arg(long, value_name = "N")]
    batch: usize,
    /// Forward passes per optimizer step [default: 1]
    #[arg(long, value_name = "N")]
    accumulation: usize,
    /// AdamW's weight decay [default: 0.01]
    #[arg(long, value_name = "F")]
    weight_decay: f64,
    /// Clip the adapter's gradient to this norm; 0 does not [default: 1]
    #[arg(long, value_name = "F")]
    max_grad_norm: f64,
    /// Save a moving average of the adapter with this decay [default: off]
    #[arg(long, value_name = "F")]
    ema_decay: f64,
    /// How timesteps are drawn: uniform or stratified over the batch [default: uniform]
    #[arg(long, value_name = "NAME")]
    timesteps: String,
    /// Side of the training pictures in pixels, a multiple of 8 [default: what the base was trained at]
    #[arg(long, value_name = "PX")]
    resolution: usize,
    /// center or random [default: center]
    #[arg(long, value_name = "NAME")]
    crop: String,
    /// Also learn from the pictures mirrored
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    flip: bool,
    /// Memory that training may take, such as 8GB; blocks are recomputed instead of kept until it fits [default: auto,
    /// what the machine has left]
    #[arg(long, value_name = "SIZE")]
    memory_limit: String,
    /// Compute all blocks twice to save memory, or none [default: as the memory limit asks]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    gradient_checkpointing: bool,
    /// Draw previews every N steps; 0 draws none [default: 0]
    #[arg(long, value_name = "N")]
    preview_every: usize,
    /// Prompt of the previews; {trigger} is replaced
    #[arg(long, value_name = "TEXT")]
    preview_prompt: String,
    /// Save the state every N steps [default: 50]
    #[arg(long, value_name = "N")]
    save_every: usize,
    /// Measure the drift on held-out prompts every N steps; 0 never does [default: 25]
    #[arg(long, value_name = "N")]
    drift_every: usize,
    /// Seed of every draw
    #[arg(long, value_name = "N")]
    seed: u64,
    /// auto, cpu, cuda:N or metal [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: String,
    /// Precision of the base's weights: f32, f16 or bf16 [default: f32]
    #[arg(long, value_name = "DTYPE")]
    dtype: String,
    /// kohya, diffusers or peft [default: kohya]
    #[arg(long, value_enum, value_name = "NAME")]
    format: FormatName,
}

/// What a base is trained with unless told otherwise.
pub(crate) struct BaseDefaults {
    pub(crate) embedded: bool,
    /// The side of the pictures that the base was trained at, in pixels.
    pub(crate) resolution: usize,
}

impl BaseDefaults {
    /// A complete set of settings, but for the pictures, the trigger and the class.
    ///
    /// For the embedded base, rate and steps are read off the curve in docs/trade-off.md; for real Stable Diffusion they
    /// are the CAT authors' (arXiv 2404.07554: rate 1e-4, 900 steps, weight 1) with rank 8 in place of 1.
    fn settings(&self) -> TrainSettings {
        let (steps, learning_rate, batch) = if self.embedded { (120, 2e-3, 4) } else { (900, 1e-4, 1) };
        TrainSettings {
            base: Some("embedded".into()),
            loss: Some("cat".into()),
            cat_weight: Some(1.0),
            cat_condition: Some("caption".into()),
            cat_empty_share: Some(0.0),
            cat_every: Some(1),
            cat_cached_draws: Some(0),
            prior_weight: Some(1.0),
            class_pictures: Some(20),
            rank: Some(8),
            dropout: Some(0.0),
            targets: Some("attention".into()),
            train_text_encoder: Some(false),
            steps: Some(steps),
            learning_rate: Some(learning_rate),
            schedule: Some("constant".into()),
            warmup_steps: Some(0),
            batch: Some(batch),
            accumulation: Some(1),
            weight_decay: Some(0.01),
            max_grad_norm: Some(1.0),
            resolution: Some(self.resolution),
            timesteps: Some("uniform".into()),
            crop: Some("center".into()),
            flip: Some(false),
            memory_limit: Some("auto".into()),
            preview_every: Some(0),
            save_every: Some(50),
            drift_every: Some(25),
            seed: Some(42),
            device: Some("auto".into()),
            dtype: Some("f32".into()),
            format: Some(FormatName::Kohya),
            ..TrainSettings::default()
        }
    }
}

impl SettingsArgs {
    /// Flags over run file.
    pub(crate) fn resolve(self) -> Outcome<TrainSettings> {
        let file = self.config.as_deref().map(TrainSettings::read).transpose()?.unwrap_or_default();
        Ok(self.flags.over(file))
    }
}

impl TrainSettings {
    /// Reads a run file.
    pub(crate) fn read(path: &Path) -> Outcome<Self> {
        let text = std::fs::read_to_string(path).request(format!("cannot read run file `{}`", path.display()))?;
        toml::from_str(&text).request(format!("run file `{}` cannot be used", path.display()))
    }

    /// The run file that repeats this run.
    pub(crate) fn to_toml(&self) -> Outcome<String> {
        toml::to_string(self).run("cannot write the settings as TOML")
    }

    /// The saved settings of a run to resume; all that may change is how long it goes on and how it is watched.
    pub(crate) fn resumed_with(self, asked: Self) -> Outcome<Self> {
        // What memory there is and how it is used changes no bit.
        const FREE: [&str; 8] = [
            "steps",
            "save_every",
            "preview_every",
            "preview_prompt",
            "drift_every",
            "device",
            "memory_limit",
            "gradient_checkpointing",
        ];
        let bound: Vec<_> = asked.stated().into_iter().filter(|setting| !FREE.contains(setting)).collect();
        match bound.first() {
            Some(setting) => Err(Failure::request(
                format!("`{setting}` cannot change when a run is resumed"),
                format!("leave it out, or start a new run; only {} may change", FREE.join(", ")),
            )),
            None => Ok(asked.over(self)),
        }
    }

    /// These settings without anything that tells where files are on this machine.
    pub(crate) fn without_paths(&self) -> Self {
        let base = self.base.clone().filter(|base| !Path::new(base).exists());
        Self { images: None, base, ..self.clone() }
    }

    /// These settings with everything unsaid filled in.
    pub(crate) fn complete(self, defaults: &BaseDefaults) -> Self {
        let mut complete = self.over(defaults.settings());
        complete.alpha = complete.alpha.or(complete.rank.map(|rank| rank as f64));
        complete
    }

    /// The device that the run computes on.
    pub(crate) fn device(&self) -> Outcome<Device> {
        device::parse(self.device.as_deref().unwrap_or("auto"))
    }

    /// The type that the base's weights are loaded in.
    pub(crate) fn weights_dtype(&self) -> Outcome<DType> {
        device::dtype(self.dtype.as_deref().unwrap_or("f32"))
    }

    /// The kind of the adapter's updates.
    pub(crate) fn kind(&self) -> Outcome<UpdateKind> {
        let kind = self.kind.as_deref().map(str::parse::<UpdateKind>).transpose().request("cannot use `kind`")?;
        Ok(kind.unwrap_or_default())
    }

    /// Whether the run is on the tiny model in this binary.
    pub(crate) fn on_embedded_base(&self) -> bool {
        self.base.as_deref() == Some("embedded")
    }

    /// The settings that decide the bits of the run, validated.
    pub(crate) fn train_config(&self) -> Outcome<TrainConfig> {
        let config = TrainConfig {
            loss: one_of("loss", &self.loss, &LOSSES)?,
            cat_weight: stated("cat_weight", self.cat_weight)?,
            cat_condition: one_of("cat_condition", &self.cat_condition, &CONDITIONS)?,
            cat_empty_share: stated("cat_empty_share", self.cat_empty_share)?,
            cat_every: stated("cat_every", self.cat_every)?,
            cat_cached_draws: stated("cat_cached_draws", self.cat_cached_draws)?,
            prior_weight: stated("prior_weight", self.prior_weight)?,
            min_snr_gamma: self.min_snr_gamma,
            kind: self.kind()?,
            rank: stated("rank", self.rank)?,
            alpha: stated("alpha", self.alpha)?,
            dropout: stated("dropout", self.dropout)?,
            targets: stated("targets", self.targets.clone())?.parse::<Targets>().request("cannot use `targets`")?,
            train_text_encoder: stated("train_text_encoder", self.train_text_encoder)?,
            steps: stated("steps", self.steps)?,
            batch: stated("batch", self.batch)?,
            accumulation: stated("accumulation", self.accumulation)?,
            learning_rate: stated("learning_rate", self.learning_rate)?,
            text_encoder_learning_rate: self.text_encoder_learning_rate,
            schedule: one_of("schedule", &self.schedule, &SCHEDULES)?,
            warmup_steps: stated("warmup_steps", self.warmup_steps)?,
            weight_decay: stated("weight_decay", self.weight_decay)?,
            max_grad_norm: stated("max_grad_norm", self.max_grad_norm)?,
            ema_decay: self.ema_decay,
            latents: LatentDraw::Sample,
            timestep_sampling: one_of("timesteps", &self.timesteps, &TIMESTEPS)?,
            seed: stated("seed", self.seed)?,
        };
        config.validate().request("the settings cannot be used")?;
        Ok(config)
    }
}

const LOSSES: [(&str, LossKind); 3] =
    [("cat", LossKind::Cat), ("lora", LossKind::Lora), ("dreambooth", LossKind::Dreambooth)];
const CONDITIONS: [(&str, CatCondition); 3] =
    [("caption", CatCondition::Caption), ("class", CatCondition::Class), ("empty", CatCondition::Empty)];
const TIMESTEPS: [(&str, TimestepSampling); 2] =
    [("uniform", TimestepSampling::Uniform), ("stratified", TimestepSampling::Stratified)];
const SCHEDULES: [(&str, Curve); 3] =
    [("constant", Curve::Constant), ("linear", Curve::Linear), ("cosine", Curve::Cosine)];

/// The value of a setting that must be there by now.
pub(crate) fn stated<T>(setting: &str, value: Option<T>) -> Outcome<T> {
    let flag = setting.replace('_', "-");
    value.ok_or_else(|| {
        Failure::request(
            format!("`{setting}` is not set"),
            format!("give `--{flag}`, or `{setting} = …` in the run file"),
        )
    })
}

fn one_of<T: Copy>(setting: &str, value: &Option<String>, choices: &[(&str, T)]) -> Outcome<T> {
    let name = stated(setting, value.as_deref())?;
    let found = choices.iter().find(|(choice, _)| *choice == name);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let known = choices.iter().map(|(choice, _)| format!("`{choice}`")).collect::<Vec<_>>();
        Failure::request(format!("unknown {setting} `{name}`"), format!("use one of {}", known.join(", ")))
    })
}
