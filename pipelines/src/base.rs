//! A whole base model: its networks, its noise schedule, and what it is.

mod fingerprint;

use std::fmt;

use candle_core::{DType, Device};

use crate::diffusion::NoiseSchedule;
use crate::error::{Error, Result};
use crate::files::{ModelFiles, UnsupportedSetting};
use crate::model::{TextEncoders, Tiling, UNet, UNetConfig, Vae};

/// A frozen base model, ready to predict, encode and decode.
#[derive(Debug)]
pub struct BaseModel {
    /// Predicts noise or velocity.
    pub unet: UNet,
    /// Goes between pictures and latents.
    pub vae: Vae,
    /// Reads prompts.
    pub text: TextEncoders,
    /// The noise the model was trained with.
    pub schedule: NoiseSchedule,
    /// Which Stable Diffusion it is.
    pub family: Family,
    /// What an empty negative prompt stands for.
    pub empty_negative: EmptyNegative,
    /// SHA-256 in hexadecimal that tells base models apart; see [`BaseModel::load`].
    pub fingerprint: String,
    /// What the model is called: its folder, hub id, or `embedded`.
    pub name: String,
    device: Device,
}

/// The generations of Stable Diffusion, told apart by the shape of the UNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// SD 1.x: the transformers' projections are 1x1 convolutions.
    Sd1,
    /// SD 2.x: they are linear layers.
    Sd2,
    /// SDXL: the UNet also takes a pooled prompt and picture sizes.
    Sdxl,
}

impl Family {
    fn of(config: &UNetConfig) -> Self {
        match (&config.added, config.linear_projection) {
            (Some(_), _) => Self::Sdxl,
            (None, true) => Self::Sd2,
            (None, false) => Self::Sd1,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Sd1 => "sd1",
            Self::Sd2 => "sd2",
            Self::Sdxl => "sdxl",
        })
    }
}

/// What classifier-free guidance takes for an empty negative prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyNegative {
    /// The encoded empty prompt.
    Encoded,
    /// Zeros for context and pooled prompt (`force_zeros_for_empty_prompt`, as SDXL's base was trained).
    Zeros,
}

/// `model_index.json`, as far as it matters here.
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

impl BaseModel {
    /// Loads everything `model_index.json` stands for, with weights converted to `dtype` on `device`.
    ///
    /// The fingerprint covers every component's configuration (keys in order, without those that begin with `_`), and
    /// the name, type and shape of every weight with its first, middle and last 64 bytes. Two models that agree in all
    /// that but differ elsewhere have the same fingerprint; the same model in another precision has another one.
    ///
    /// # Errors
    /// [`Error::UnsupportedSettings`] for another kind of pipeline or network, [`Error::MissingFile`] and the
    /// other file errors, [`Error::TensorMismatch`] for weights that do not fit, [`Error::InvalidInput`] when the
    /// text encoders and the UNet do not fit together.
    pub fn load(files: &ModelFiles, dtype: DType, device: &Device) -> Result<Self> {
        let index = read_index(files)?;
        let unet = UNet::load(files, dtype, device)?;
        let text = TextEncoders::load(files, dtype, device)?;
        check_context_width(&unet, &text)?;
        let empty_negative =
            if index.force_zeros_for_empty_prompt { EmptyNegative::Zeros } else { EmptyNegative::Encoded };
        Ok(Self {
            family: Family::of(unet.config()),
            vae: Vae::load(files, dtype, device)?,
            schedule: NoiseSchedule::load(files)?,
            fingerprint: fingerprint::of(files)?,
            name: files.name().to_owned(),
            device: device.clone(),
            empty_negative,
            unet,
            text,
        })
    }

    /// The device its weights are on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type its UNet computes in.
    pub fn dtype(&self) -> DType {
        self.unet.dtype()
    }

    /// Every module an adapter can reach: the UNet's, then the text encoders'.
    pub fn modules(&self) -> Vec<catelier_adapters::ModuleInfo> {
        [self.unet.modules(), self.text.modules()].concat()
    }

    /// Norm of the weights of each output of the module at `path`, `[out]`: the magnitudes of a fresh DoRA.
    ///
    /// # Errors
    /// There is no such module.
    pub fn row_norms(&self, path: &str) -> candle_core::Result<candle_core::Tensor> {
        let has = |modules: &[catelier_adapters::ModuleInfo]| modules.iter().any(|module| module.path == path);
        match self.text.encoders().find(|encoder| has(encoder.modules())) {
            Some(encoder) => encoder.row_norms(path),
            None => self.unet.row_norms(path),
        }
    }

    /// Cuts large pictures into tiles; see [`Vae::with_tiling`].
    ///
    /// # Errors
    /// Those of [`Vae::with_tiling`].
    pub fn with_tiling(self, tiling: Tiling) -> Result<Self> {
        Ok(Self { vae: self.vae.with_tiling(tiling)?, ..self })
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

/// The text encoders' hidden states, side by side, are what the UNet attends to.
fn check_context_width(unet: &UNet, text: &TextEncoders) -> Result<()> {
    let found: usize = text.encoders().map(|encoder| encoder.config().hidden_size).sum();
    let expected = unet.config().context_width();
    if found == expected {
        return Ok(());
    }
    Err(Error::InvalidInput {
        what: "width of the text encoders",
        expected: format!("{expected}, the UNet's `cross_attention_dim`"),
        found: found.to_string(),
    })
}
