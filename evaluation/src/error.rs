//! What can go wrong between pictures and numbers, and what to do next.

use std::path::PathBuf;

/// The room's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a feature, a score or a page could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the feature extractor could not be read.
    #[error("cannot read `{}`", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
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
        /// Where reading stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A setting of the feature extractor is outside what this crate computes.
    #[error("`{file}` sets `{setting}`: expected {expected}, found `{found}`")]
    UnsupportedSetting {
        /// The file's name.
        file: &'static str,
        /// The key.
        setting: &'static str,
        /// What would be understood.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// The weights cannot be read as a safetensors file.
    #[error("cannot read the CLIP weights")]
    Weights {
        /// What is wrong with the file.
        #[source]
        source: Box<catelier_numerics::Error>,
    },
    /// The weights do not fit the configuration.
    #[error("the CLIP weights do not fit config.json: {}", offenders.join("; "))]
    TensorMismatch {
        /// One entry for each tensor that is missing or has another shape.
        offenders: Vec<String>,
    },
    /// The tokenizer's files cannot be used.
    #[error("cannot use the CLIP tokenizer")]
    Tokenizer {
        /// What the tokenizer said.
        #[source]
        source: Box<catelier_prompts::Error>,
    },
    /// A tensor operation failed.
    #[error("cannot compute {what}")]
    Tensor {
        /// What was being computed.
        what: &'static str,
        /// What candle said.
        #[source]
        source: candle_core::Error,
    },
    /// A picture has no pixels.
    #[error("picture {index} has no pixels: expected at least 1x1, found {width}x{height}")]
    EmptyPicture {
        /// Its position in the list.
        index: usize,
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
    },
    /// A score was asked of nothing.
    #[error("cannot compute `{score}`: expected at least {expected} {of}, found {found}")]
    TooFew {
        /// The score.
        score: &'static str,
        /// What is counted.
        of: &'static str,
        /// How many are needed.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// The bootstrap of a score failed.
    #[error("cannot compute the interval of `{score}`")]
    Statistics {
        /// The score.
        score: &'static str,
        /// What the statistics said.
        #[source]
        source: Box<catelier_numerics::Error>,
    },
    /// Two lists that belong together differ in length.
    #[error("{what} differ in length: expected {expected}, found {found}")]
    LengthMismatch {
        /// The lists.
        what: &'static str,
        /// The first list's length.
        expected: usize,
        /// The second list's length.
        found: usize,
    },
    /// A feature has no direction: all of it is zero, or some of it is not a number.
    #[error("a feature has no direction: expected finite values that are not all zero")]
    NoDirection,
    /// A value lies outside the range of its score.
    #[error("`{score}` takes values in [{low}, {high}], found {value}")]
    OutOfRange {
        /// The score.
        score: &'static str,
        /// Smallest possible value.
        low: f64,
        /// Largest possible value.
        high: f64,
        /// The offending value.
        value: f64,
    },
    /// The text is not the JSON of a score file.
    #[error("not a score file")]
    ScoreFile {
        /// Where reading stopped.
        #[source]
        source: serde_json::Error,
    },
    /// The JSON has another format or a version from the future.
    #[error("expected format `{expected}` version {version} or older, found `{found}` version {found_version}")]
    ScoreFormat {
        /// The format this crate reads.
        expected: &'static str,
        /// The newest version this crate reads.
        version: u32,
        /// The format found.
        found: String,
        /// The version found.
        found_version: u32,
    },
    /// A page could not be made.
    #[error(transparent)]
    Page(#[from] catelier_pages::Error),
}

impl Error {
    /// What to do next, where there is something to advise.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::ReadFile { path, .. } if path.ends_with("model.safetensors") => {
                "a CLIP folder needs `model.safetensors`; checkpoints ending in .bin are pickles and are not read, convert them once with transformers' `save_pretrained`"
            }
            Self::ReadFile { .. } | Self::MissingFile { .. } | Self::Settings { .. } => {
                "a CLIP folder, as transformers saves it, holds config.json, preprocessor_config.json, model.safetensors and the tokenizer's files"
            }
            Self::UnsupportedSetting { .. } | Self::TensorMismatch { .. } => {
                "use a CLIP model with both towers, such as openai/clip-vit-base-patch32"
            }
            Self::Weights { source } => return source.hint(),
            Self::Tokenizer { source } => return source.hint(),
            Self::TooFew { of, .. } => return Some(format!("give more {of}")),
            Self::ScoreFormat { .. } => "read the file with the version of the toolkit that wrote it, or score again",
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

/// Names what was being computed when candle failed.
pub(crate) trait Computing<T> {
    /// Turns candle's error into this room's.
    fn computing(self, what: &'static str) -> Result<T>;
}

impl<T> Computing<T> for candle_core::Result<T> {
    fn computing(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Tensor { what, source })
    }
}
