//! The errors of this crate, one variant per rule.

use std::path::PathBuf;

use crate::models::files::{TensorOffence, UnsupportedSetting};

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

    /// A weight file is not a readable safetensors file.
    #[error("`{path}` is not a readable safetensors file")]
    UnreadableWeights {
        /// The file.
        path: String,
        /// The parser's reason.
        source: candle_core::Error,
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

    /// A hub id, a revision or a hub setting has an invalid form.
    #[error("`{value}` is not a valid {what}: {rule}")]
    InvalidHubSetting {
        /// The kind of value: id, revision or setting.
        what: &'static str,
        /// The value that the user gave.
        value: String,
        /// The form that it must have.
        rule: &'static str,
    },

    /// The token would have been sent without encryption.
    #[error("the token is not sent to `{endpoint}`: plain http is allowed for this machine only")]
    TokenInTheClear {
        /// The endpoint.
        endpoint: String,
    },

    /// The hub refused access (401 or 403).
    #[error("the hub at `{endpoint}` refused access to `{id}` (status {status})")]
    HubRefused {
        /// The model's id.
        id: String,
        /// The endpoint that was asked.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },

    /// The hub lacks the model, the revision or the file (404).
    #[error("the hub at `{endpoint}` has no `{id}`")]
    HubNotFound {
        /// The model's id, with its revision or file.
        id: String,
        /// The endpoint that was asked.
        endpoint: String,
    },

    /// The hub could not be reached, or the transfer failed.
    #[error("cannot fetch `{id}` from `{endpoint}`")]
    HubFailed {
        /// The model's id, with its file.
        id: String,
        /// The endpoint that was asked.
        endpoint: String,
        /// The HTTP client's error.
        source: Box<hf_hub::api::sync::ApiError>,
    },

    /// The hub has the model, but not all files of a diffusers folder.
    #[error("`{id}` is not a complete diffusers folder: it lacks {}", quoted(.missing))]
    IncompleteModel {
        /// The model's id.
        id: String,
        /// The files that are missing.
        missing: Vec<String>,
    },

    /// The cache lacks files of the model, and the network may not be used.
    #[error("offline, and the cache `{}` lacks {} of `{id}`", .cache.display(), quoted(.missing))]
    NotCached {
        /// The model's id.
        id: String,
        /// The cache folder.
        cache: PathBuf,
        /// The files that are missing.
        missing: Vec<String>,
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
            Self::IncompleteModel { .. } => {
                Some("choose a model or revision in the diffusers layout, with `model_index.json` at its root".into())
            }
            Self::TokenInTheClear { .. } => Some("use an https endpoint, or unset the token".into()),
            Self::HubRefused { id, with_token: false, .. } => Some(format!(
                "check the spelling of `{id}`; if it is private or gated, accept its terms on the hub and set HF_TOKEN"
            )),
            Self::HubRefused { id, .. } => {
                Some(format!("check that the token may read `{id}` and that its terms are accepted"))
            }
            Self::HubNotFound { .. } => {
                Some("check the spelling `organisation/name@revision`; private models need HF_TOKEN".into())
            }
            Self::HubFailed { .. } => {
                Some("check the connection and HF_ENDPOINT; a second try goes on where this one stopped".into())
            }
            Self::ImageNotFinite { .. } => {
                Some("use a lower guidance or adapter strength; with f16, try bf16 or f32".into())
            }
            Self::NotCached { .. } => Some("fetch the model once while online (unset HF_HUB_OFFLINE)".into()),
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
fn quoted(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("`{item}`")).collect();
    list(&items)
}
