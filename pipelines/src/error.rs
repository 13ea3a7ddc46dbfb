//! The errors of this crate, one variant per rule.

use std::path::PathBuf;

use crate::models::files::{TensorOffence, UnsupportedSetting};
use crate::models::hub::HubError;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error between a model folder and an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the numerics crate.
    #[error(transparent)]
    Numerics(#[from] catelier_numerics::Error),

    /// An adapter could not be read, matched or applied.
    #[error(transparent)]
    Adapters(#[from] catelier_adapters::Error),

    /// A caption, a prompt or a tokenizer was refused.
    #[error(transparent)]
    Prompts(#[from] catelier_prompts::Error),

    /// Training images were refused.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),

    /// A model could not be had from a hub or from the cache.
    #[error(transparent)]
    Hub(#[from] HubError),

    /// The caller stopped the work through a progress callback.
    #[error("cancelled")]
    Cancelled,

    /// A tensor operation failed: memory is short, or shapes do not fit.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),

    /// The base model lacks a file.
    #[error("base `{base}` has no `{path}`")]
    MissingFile {
        /// The base model's name.
        base: String,
        /// The file, relative to the base.
        path: String,
    },

    /// A file exists but cannot be read.
    #[error("cannot read `{}`", .path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },

    /// A configuration file is not valid JSON, or has values of other types.
    #[error("`{path}` is not a valid configuration")]
    InvalidConfig {
        /// The file, relative to the base.
        path: String,
        /// The parser's reason.
        source: serde_json::Error,
    },

    /// A configuration has settings that these models do not support.
    #[error("`{path}` asks for what is not supported: {}", list(.settings))]
    UnsupportedSettings {
        /// The file, relative to the base.
        path: String,
        /// Every setting that is not supported.
        settings: Vec<UnsupportedSetting>,
    },

    /// A component has no safetensors file.
    #[error("no weights for `{component}`: expected one of {}", quoted(.tried))]
    MissingWeights {
        /// The component's folder.
        component: String,
        /// The file names that were tried.
        tried: Vec<String>,
    },

    /// A component has weights in pickle files only. Pickle files can run code and are never opened.
    #[error("`{component}` has only pickle weights ({}), which can run code and are not opened", quoted(.found))]
    PickleWeights {
        /// The component's folder, or the file itself.
        component: String,
        /// The pickle files found.
        found: Vec<String>,
    },

    /// The index of a sharded checkpoint names files that do not exist.
    #[error("`{component}` is incomplete: its index names {}, not found", quoted(.missing))]
    MissingShards {
        /// The component's folder.
        component: String,
        /// The files that are missing.
        missing: Vec<String>,
    },

    /// A component's weights do not fit its configuration.
    #[error("the weights of `{component}` do not fit its configuration: {}", list(.offences))]
    TensorMismatch {
        /// The component's folder.
        component: String,
        /// Every tensor that is missing or has another shape.
        offences: Vec<TensorOffence>,
    },

    /// A tensor has another shape than the model takes.
    #[error("`{what}`: expected {expected}, found {found}")]
    InvalidInput {
        /// The argument.
        what: &'static str,
        /// The shape that the model takes.
        expected: String,
        /// The shape of the tensor.
        found: String,
    },

    /// A setting of the schedule, the sampler or the request is outside its range.
    #[error("setting `{setting}` is {value}, it {rule}")]
    InvalidSetting {
        /// The setting's name, as in the configuration or the request.
        setting: &'static str,
        /// The value asked for.
        value: String,
        /// The rule for its values.
        rule: String,
    },

    /// The latents or the pixels of a generation are NaN or infinite.
    #[error("the image of prompt `{prompt}` (seed {seed}) is not finite after step {step} of {steps}")]
    ImageNotFinite {
        /// The prompt.
        prompt: String,
        /// The image's seed.
        seed: u64,
        /// The sampler step after which NaN or infinity was found, counted from 1; `steps + 1` for the decoder.
        step: usize,
        /// Number of sampler steps.
        steps: usize,
    },

    /// An image could not be written.
    #[error("cannot write the image `{}`", .path.display())]
    WriteImage {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// What the user can do about the error, if that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Numerics(error) => error.hint(),
            Self::Adapters(error) => error.hint(),
            Self::Prompts(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Hub(error) => error.hint(),
            Self::MissingFile { .. } => Some(
                "a base is a folder in the diffusers layout: `model_index.json` beside `unet/`, `vae/`, \
                 `text_encoder/`, `tokenizer/` and `scheduler/`"
                    .into(),
            ),
            Self::MissingWeights { .. } | Self::MissingShards { .. } => {
                Some("fetch the folder again, or copy the missing files into it".into())
            }
            Self::PickleWeights { .. } => Some(
                "use a revision of the model with safetensors files, or save it again with diffusers: \
                 `pipeline.save_pretrained(folder, safe_serialization=True)`"
                    .into(),
            ),
            Self::TensorMismatch { .. } => {
                Some("the configuration and the weights come from different models; fetch both again".into())
            }
            Self::ImageNotFinite { .. } => {
                Some("use a lower guidance or adapter strength; with f16, try bf16 or f32".into())
            }
            _ => None,
        }
    }
}

/// The first few `items`, and the number of the others.
fn list<T: std::fmt::Display>(items: &[T]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = items.iter().take(SHOWN).map(T::to_string).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

/// The first few `items` in backticks.
pub(crate) fn quoted(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("`{item}`")).collect();
    list(&items)
}
