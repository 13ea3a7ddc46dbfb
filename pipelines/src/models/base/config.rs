//! A base model's configuration files, without weights.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use catelier_adapters::{BaseFamily, Component, ModuleInfo, Prediction};

use super::fingerprint;
use crate::diffusion::{NoiseSchedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::models::config::check::{Check, Rule, Table};
use crate::models::files::{ModelFiles, UnsupportedSetting};
use crate::models::shapes::TensorShape;
use crate::models::{ImageSizes, TextEncoderConfig, TextEncoderLayout, UNetConfig, UNetLayout, VaeConfig, VaeLayout};

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
#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct ModelIndex {
    force_zeros_for_empty_prompt: bool,
}

/// The keys of `model_index.json`; the others name components or other pipelines' settings.
const MODEL_INDEX: &Table = &[
    (
        "_class_name",
        Rule::OneOf(&[
            "\"StableDiffusionPipeline\"",
            "\"StableDiffusionXLPipeline\"",
            "\"StableDiffusionImg2ImgPipeline\"",
            "\"StableDiffusionXLImg2ImgPipeline\"",
        ]),
    ),
    ("force_zeros_for_empty_prompt", Rule::Flag),
];

impl BaseConfig {
    /// Reads `model_index.json` and the configuration of every component that it names, each once.
    ///
    /// # Errors
    /// [`Error::UnsupportedSettings`] for another kind of pipeline or network; [`Error::MissingFile`] and the other
    /// file errors; [`Error::InvalidInput`] if the text encoders and the UNet do not fit together;
    /// [`Error::InvalidSetting`] for an impossible noise schedule.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let mut index = Check::new("model_index.json", files, MODEL_INDEX)?;
        let zeros = index.parse::<ModelIndex>()?.force_zeros_for_empty_prompt;
        index.finish()?;
        let config = Self {
            name: files.name().to_owned(),
            unet: UNetConfig::load(files)?,
            vae: VaeConfig::load(files, "vae")?,
            text_encoders: TextEncoderConfig::load_all(files)?,
            scheduler: SchedulerConfig::load(files)?,
            empty_negative: if zeros { EmptyNegative::Zeros } else { EmptyNegative::Encoded },
        };
        config.check_context_width()?;
        config.check_pooled_width()?;
        config.check_latents()?;
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
        let elements = |tensors: Vec<TensorShape>| {
            tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
        };
        let text_encoders = self.text_encoder_layouts();
        let text_encoders = text_encoders.map(|(component, layout)| (component, elements(layout.tensors())));
        let unet = (Component::Unet, elements(UNetLayout::new(&self.unet).tensors()));
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

    /// Compares all tensors of the configuration with those in the headers of the weights, before any is loaded.
    pub(super) fn expect_weights(&self, files: &ModelFiles) -> Result<()> {
        let weights = |component: &str| files.weights(component, DType::F32, &Device::Cpu);
        weights("unet")?.expect(&UNetLayout::new(&self.unet).tensors())?;
        let vae = weights("vae")?;
        vae.expect(&VaeLayout::new(&self.vae).tensors_in(&vae))?;
        self.text_encoder_layouts().try_for_each(|(component, layout)| {
            let weights = weights(component.name())?;
            weights.expect(&layout.tensors_in(&weights))
        })
    }

    /// Shapes of all tensors of the autoencoder and the text encoders.
    pub(crate) fn tensor_shapes_beside_the_unet(&self) -> Vec<Vec<usize>> {
        let text_encoders = self.text_encoder_layouts().flat_map(|(_, layout)| layout.tensors());
        let tensors = VaeLayout::new(&self.vae).tensors().into_iter().chain(text_encoders);
        tensors.map(|tensor| tensor.shape).collect()
    }

    fn text_encoder_layouts(&self) -> impl Iterator<Item = (Component, TextEncoderLayout)> {
        let layout = |component: Component, config| (component, TextEncoderLayout::new(component.name(), config));
        self.text_encoders.iter().map(move |(component, config)| layout(*component, config))
    }

    /// Fails unless the widths of the text encoders' hidden states add up to the UNet's context width.
    fn check_context_width(&self) -> Result<()> {
        let found: usize = self.text_encoders.values().map(|config| config.hidden_size).sum();
        let Some(expected) = self.unet.levels.iter().map(|level| level.context_width).find(|width| *width != found)
        else {
            return Ok(());
        };
        Err(Error::InvalidInput {
            what: "width of the text encoders",
            expected: format!("{expected}, the UNet's `cross_attention_dim`"),
            found: found.to_string(),
        })
    }

    /// Fails unless the added embedding takes the second text encoder's pooled prompt and the image sizes.
    fn check_pooled_width(&self) -> Result<()> {
        let (Some(added), Some(encoder)) = (&self.unet.added, self.text_encoders.get(&Component::TextEncoder2)) else {
            return Ok(());
        };
        let (sizes, pooled) = (ImageSizes::COUNT * added.time_width, encoder.projection_dim);
        let expected =
            format!("{}: {sizes} of the image sizes and `projection_dim` of `text_encoder_2`", sizes + pooled);
        expect("projection_class_embeddings_input_dim", added.input_width, sizes + pooled, &expected)
    }

    /// Fails unless the UNet takes and gives the autoencoder's latents.
    fn check_latents(&self) -> Result<()> {
        let latents = self.vae.latent_channels;
        let expected = format!("{latents}, `latent_channels` of `vae/config.json`");
        expect("in_channels", self.unet.in_channels, latents, &expected)?;
        expect("out_channels", self.unet.out_channels, latents, &expected)
    }
}

/// Fails unless the UNet's setting `key` has the `expected` value, which `rule` explains.
fn expect(key: &str, found: usize, expected: usize, rule: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let setting = UnsupportedSetting { key: key.into(), value: found.to_string(), supported: rule.into() };
    Err(Error::UnsupportedSettings { path: "unet/config.json".into(), settings: vec![setting] })
}
