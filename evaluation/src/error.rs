//! Errors of scores and pages, with advice.

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a score or a page could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Images or texts could not be turned into features.
    #[error(transparent)]
    Features(#[from] catelier_features::Error),
    /// There are too few values for a score.
    #[error("cannot compute `{score}`: expected at least {expected} {of}, found {found}")]
    TooFew {
        /// The score.
        score: &'static str,
        /// The kind of values.
        of: &'static str,
        /// The number that the score needs.
        expected: usize,
        /// The number that was given.
        found: usize,
    },
    /// The bootstrap of a score failed.
    #[error("cannot compute the interval of `{score}`")]
    Statistics {
        /// The score.
        score: &'static str,
        /// The error of the statistics.
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
    /// A feature has no direction: all values are zero, or a value is not finite.
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
        /// The parser's error, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// The JSON has another format or a newer version.
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
    /// Advice on what to do next, where there is any.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Features(source) => return source.hint(),
            Self::TooFew { of, .. } => return Some(format!("give more {of}")),
            Self::ScoreFormat { .. } => "read the file with the version of the toolkit that wrote it, or score again",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
