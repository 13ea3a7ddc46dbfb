//! A base model's configuration files, without weights.

use std::collections::BTreeMap;

use catelier_adapters::{BaseFamily, Component, ModuleInfo, Prediction};

use super::fingerprint;
use crate::diffusion::{NoiseSchedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::models::files::{ModelFiles, UnsupportedSetting};
use crate::models::{TextEncoderConfig, TextEncoderLayout, UNetConfig, UNetLayout, VaeConfig, VaeLayout};

/// All configurations of a base model: its family, its modules and their shapes.
///
/// Loading reads a few kilobytes, whatever the size of the model.
#[derive(Debug, Clone)]
pub struct BaseConfig {
    /// The name of the model: its folder, hub id, or `embedded`.
    pub name: String,
    /// Configuration of the UNet.
    pub unet: UNetConfig,
    /// Configuration of the autoencoder.
    pub vae: VaeConfig,
    /// Configurations of the text encoders by component: one, or SDXL's two.
    pub text_encoders: BTreeMap<Component, TextEncoderConfig>,
    /// Configuration of the noise schedule and the recommended sampler.
    pub scheduler: SchedulerConfig,
    /// The condition that stands for an empty negative prompt.
    pub empty_negative: EmptyNegative,
}

/// The condition that classifier-free guidance takes for an empty negative prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyNegative {
    /// The encoded empty prompt.
    Encoded,
    /// Zeros for context and pooled prompt (`force_zeros_for_empty_prompt`, as SDXL's base was trained).
    Zeros,
}

/// Height and width of the latents for a UNet whose configuration does not name them.
const DEFAULT_SAMPLE_SIZE: usize = 64;

/// The keys of `model_index.json` that this crate reads.
#[derive(serde::Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name", default)]
    class_name: Option<String>,
    #[serde(default)]
    force_zeros_for_empty_prompt: bool,
}

const PIPELINES: [&str; 4] = [
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline",
];

impl BaseConfig {
    /// Reads `model_index.json` and the configuration of every component that it names, each once.
    ///
    /// # Errors
    /// [`Error::UnsupportedSettings`] for another kind of pipeline or network; [`Error::MissingFile`] and the other
    /// file errors; [`Error::InvalidInput`] if the text encoders and the UNet do not fit together;
    /// [`Error::InvalidSetting`] for an impossible noise schedule.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let index = read_index(files)?;
        let zeros = index.force_zeros_for_empty_prompt;
        let config = Self {
            name: files.name().to_owned(),
            unet: UNetConfig::load(files)?,
            vae: VaeConfig::load(files, "vae")?,
            text_encoders: TextEncoderConfig::load_all(files)?,
            scheduler: SchedulerConfig::load(files)?,
            empty_negative: if zeros { EmptyNegative::Zeros } else { EmptyNegative::Encoded },
        };
        config.check_context_width()?;
        NoiseSchedule::from_config(&config.scheduler)?;
        Ok(config)
    }

    /// The family, found from the model's layers.
    pub fn family(&self) -> BaseFamily {
        match (&self.unet.added, self.unet.linear_projection) {
            (Some(_), _) => BaseFamily::Sdxl,
            (None, true) => BaseFamily::Sd2,
            (None, false) => BaseFamily::Sd1,
        }
    }

    /// The target that the UNet was trained to predict.
    pub fn prediction(&self) -> Prediction {
        self.scheduler.prediction_type
    }

    /// Width and height in pixels of the images that the model was trained on.
    pub fn resolution(&self) -> usize {
        self.unet.sample_size.unwrap_or(DEFAULT_SAMPLE_SIZE) * self.vae.factor()
    }

    /// Length of the longest prompt in tokens, including both special tokens.
    pub fn tokens(&self) -> usize {
        self.text_encoders.values().map(|config| config.max_position_embeddings).min().unwrap_or(0)
    }

    /// Every module that an adapter can change: the UNet's, then the text encoders', each in the order of the forward
    /// pass.
    pub fn modules(&self) -> Vec<ModuleInfo> {
        let text_encoders = self.text_encoder_layouts().flat_map(|(_, layout)| layout.modules());
        UNetLayout::new(&self.unet).modules().into_iter().chain(text_encoders).collect()
    }

    /// Number of elements of all weights and biases of the UNet and of each text encoder.
    pub fn parameters(&self) -> BTreeMap<Component, u64> {
        let elements =
            |shapes: Vec<Vec<usize>>| shapes.iter().map(|shape| shape.iter().product::<usize>() as u64).sum();
        let text_encoders = self.text_encoder_layouts();
        let text_encoders = text_encoders.map(|(component, layout)| (component, elements(layout.tensor_shapes())));
        let unet = (Component::Unet, elements(UNetLayout::new(&self.unet).tensor_shapes()));
        std::iter::once(unet).chain(text_encoders).collect()
    }

    /// The model's [`Fingerprint`](catelier_adapters::Fingerprint) as text. Copies in f32 and f16 have the same
    /// fingerprint; a copy in bf16 has only its first part.
    ///
    /// It covers the settings that change a prediction, and the name, the shape and 768 elements of every weight: 256
    /// each from the beginning, the middle and the end. The first part hashes the signs of the elements, which rounding
    /// never changes; the second part hashes the elements rounded to f16. Only these elements are read from the files.
    /// Two models that differ only in other elements have the same fingerprint; copies in bf16 are compared by signs
    /// alone.
    ///
    /// # Errors
    /// Those of [`ModelFiles::stored_tensors`].
    pub fn fingerprint(&self, files: &ModelFiles) -> Result<String> {
        fingerprint::of(self, files)
    }

    /// Shapes of all tensors of the autoencoder and the text encoders.
    pub(crate) fn tensor_shapes_beside_the_unet(&self) -> Vec<Vec<usize>> {
        let text_encoders = self.text_encoder_layouts().flat_map(|(_, layout)| layout.tensor_shapes());
        VaeLayout::new(&self.vae).tensor_shapes().into_iter().chain(text_encoders).collect()
    }

    fn text_encoder_layouts(&self) -> impl Iterator<Item = (Component, TextEncoderLayout)> {
        let layout = |component: Component, config| (component, TextEncoderLayout::new(component.name(), config));
        self.text_encoders.iter().map(move |(component, config)| layout(*component, config))
    }

    /// Fails unless the widths of the text encoders' hidden states add up to the UNet's context width.
    fn check_context_width(&self) -> Result<()> {
        let found: usize = self.text_encoders.values().map(|config| config.hidden_size).sum();
        let expected = self.unet.context_width();
        if found == expected {
            return Ok(());
        }
        Err(Error::InvalidInput {
            what: "width of the text encoders",
            expected: format!("{expected}, the UNet's `cross_attention_dim`"),
            found: found.to_string(),
        })
    }
}

fn read_index(files: &ModelFiles) -> Result<ModelIndex> {
    let path = "model_index.json";
    let index: ModelIndex = files.json(path)?;
    match &index.class_name {
        Some(class) if !PIPELINES.contains(&class.as_str()) => Err(Error::UnsupportedSettings {
            path: path.into(),
            settings: vec![UnsupportedSetting {
                key: "_class_name".into(),
                value: class.clone(),
                supported: PIPELINES.join(", "),
            }],
        }),
        _ => Ok(index),
    }
}
