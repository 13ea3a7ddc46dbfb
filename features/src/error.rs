//! Errors of feature extraction, with advice.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a feature could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the feature extractor could not be read.
    #[error("cannot read `{}`", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file of the feature extractor is not among those given.
    #[error("CLIP `{name}` lacks the file `{file}`")]
    MissingFile {
        /// The extractor's name.
        name: String,
        /// The file's name.
        file: &'static str,
    },
    /// A JSON file of the feature extractor does not have the expected form.
    #[error("`{file}` is not the JSON of a CLIP folder")]
    Settings {
        /// The file's name.
        file: &'static str,
        /// The parser's error, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// A setting of the feature extractor is not supported by this crate.
    #[error("`{file}` sets `{setting}`: expected {expected}, found `{found}`")]
    UnsupportedSetting {
        /// The file's name.
        file: &'static str,
        /// The key.
        setting: &'static str,
        /// The supported values.
        expected: String,
        /// The value in the file.
        found: String,
    },
    /// The weights cannot be read as a safetensors file.
    #[error("cannot read the CLIP weights")]
    Weights {
        /// The reason.
        #[source]
        source: Box<catelier_numerics::Error>,
    },
    /// The weights do not fit the configuration.
    #[error("the CLIP weights do not fit config.json: {}", offenders.join("; "))]
    TensorMismatch {
        /// One entry for each tensor that is missing or has another shape.
        offenders: Vec<String>,
    },
    /// CLIP's tokenizer files cannot be used.
    #[error("cannot use the CLIP tokenizer")]
    Tokenizer {
        /// The tokenizer's error.
        #[source]
        source: Box<catelier_prompts::Error>,
    },
    /// `tokenizer.json` cannot be used.
    #[error("cannot use `tokenizer.json`: {reason}")]
    TokenizerJson {
        /// The reason.
        reason: String,
    },
    /// A text cannot be tokenized.
    #[error("cannot tokenize `{text}`: {reason}")]
    Tokenize {
        /// The text.
        text: String,
        /// The tokenizer's error.
        reason: String,
    },
    /// A tensor operation failed.
    #[error("cannot compute {what}")]
    Tensor {
        /// The computation.
        what: &'static str,
        /// candle's error.
        #[source]
        source: candle_core::Error,
    },
    /// An image has no pixels.
    #[error("image {index} has no pixels: expected at least 1x1, found {width}x{height}")]
    EmptyImage {
        /// Its position in the list.
        index: usize,
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
    },
    /// Tokens of a block that the image tower does not have, or does not show.
    #[error("`{name}` shows no tokens of block {block}: expected 1 to {blocks}")]
    NoTokens {
        /// The extractor's name.
        name: String,
        /// The block, from 1.
        block: usize,
        /// The number of blocks that can be seen.
        blocks: usize,
    },
    /// The caller stopped the measuring.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Advice on what to do next, where there is any.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::ReadFile { path, .. } if path.ends_with("model.safetensors") => {
                "a CLIP folder needs `model.safetensors`; checkpoints ending in .bin are pickles and are not read, convert them once with transformers' `save_pretrained`"
            }
            Self::MissingFile { file: "tokenizer.json", .. } | Self::TokenizerJson { .. } => {
                "SigLIP texts need `tokenizer.json`; transformers' `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` writes it from `spiece.model`"
            }
            Self::ReadFile { .. } | Self::MissingFile { .. } | Self::Settings { .. } => {
                "a CLIP folder, as transformers saves it, holds config.json, preprocessor_config.json, model.safetensors and the tokenizer's files"
            }
            Self::UnsupportedSetting { .. } | Self::TensorMismatch { .. } => {
                "use a CLIP or SigLIP model with both towers, such as openai/clip-vit-base-patch32"
            }
            Self::NoTokens { .. } => "tokens of CLIP's towers can be seen, those of SigLIP's cannot",
            Self::Weights { source } => return source.hint(),
            Self::Tokenizer { source } => return source.hint(),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

impl From<catelier_prompts::Error> for Error {
    fn from(source: catelier_prompts::Error) -> Self {
        Self::Tokenizer { source: Box::new(source) }
    }
}

/// Adds the failed computation to candle's error.
pub(crate) trait Computing<T> {
    /// Turns candle's error into this crate's.
    fn computing(self, what: &'static str) -> Result<T>;
}

impl<T> Computing<T> for candle_core::Result<T> {
    fn computing(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Tensor { what, source })
    }
}
