//! Errors of style models and searches, with advice.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a style could not be learned, indexed or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Fewer artists than a comparison needs.
    #[error("expected at least 2 artists, found {found}")]
    FewArtists {
        /// The number of artists.
        found: usize,
    },
    /// Two artists have one name.
    #[error("two artists are called `{name}`")]
    SameName {
        /// The name.
        name: String,
    },
    /// A name that cannot be shown in one line.
    #[error(
        "the artist's name `{}` must have 1 to {LONGEST_NAME} characters and no control characters",
        shortened(name)
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Two artists have the same works, so that no search can tell them apart.
    #[error("`{first}` and `{second}` have the same works")]
    SameWorks {
        /// One artist.
        first: String,
        /// The other.
        second: String,
    },
    /// An artist without works and without prototypes.
    #[error("`{artist}` has no works")]
    NoWorks {
        /// The artist.
        artist: String,
    },
    /// Too few works of one artist for what was asked.
    #[error("`{artist}` has {}, and {needed} are needed {purpose}", works(*found))]
    FewWorks {
        /// The artist.
        artist: String,
        /// The number of works.
        found: usize,
        /// The least number.
        needed: usize,
        /// What they are needed for.
        purpose: &'static str,
    },
    /// A prototype that no works can have.
    #[error("`{artist}` brings a prototype that cannot be used: {reason}")]
    Prototype {
        /// The artist.
        artist: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Features that point nowhere: a zero, a value that is not finite, or references that cancel out.
    #[error("the features of {what} point in no direction")]
    NoDirection {
        /// Whose features.
        what: String,
    },
    /// Features of another width than the model's.
    #[error("expected features of {expected} values, found {found}")]
    Width {
        /// The model's width.
        expected: usize,
        /// The width that was found.
        found: usize,
    },
    /// Prototypes or features of another style model.
    #[error("`{what}` was made with the style model {found}, expected {expected}")]
    OtherModel {
        /// What was made with it.
        what: String,
        /// The model that is used.
        expected: String,
        /// The model that it was made with.
        found: String,
    },
    /// A setting outside of its range.
    #[error("{what}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// The rule.
        expected: &'static str,
        /// The value.
        found: f64,
    },
    /// Noise cannot be combined with several prototypes.
    #[error("noise covers the mean of all works of an artist, and {prototypes} prototypes are asked for")]
    NoiseOnClusters {
        /// The number of prototypes.
        prototypes: usize,
    },
    /// An artist that is not in the index.
    #[error("the index has no artist `{name}`")]
    UnknownArtist {
        /// The name that was asked for.
        name: String,
        /// The name most like it.
        nearest: Option<String>,
    },
    /// A file that is damaged, of another kind or of a later version.
    #[error("`{}` is not usable: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// Features could not be made.
    #[error("cannot compute features")]
    Features(#[source] catelier_features::Error),
    /// Models of a round could not be aggregated.
    #[error("cannot aggregate the style models of round {round}")]
    Federation {
        /// The round, from 1.
        round: usize,
        /// The cause.
        #[source]
        source: catelier_federation::Error,
    },
    /// Training or a file failed.
    #[error("{what} failed")]
    Numerics {
        /// The operation.
        what: String,
        /// The cause.
        #[source]
        source: catelier_numerics::Error,
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
    /// The caller stopped the work.
    #[error("cancelled")]
    Cancelled,
}

/// Longest name of an artist, in characters.
pub(crate) const LONGEST_NAME: usize = 200;

fn works(count: usize) -> String {
    if count == 1 { "1 work".to_owned() } else { format!("{count} works") }
}

fn shortened(name: &str) -> String {
    const SHOWN: usize = 40;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

impl Error {
    pub(crate) fn tensor(what: &'static str) -> impl FnOnce(candle_core::Error) -> Self {
        move |source| Self::Tensor { what, source }
    }

    pub(crate) fn numerics(what: impl Into<String>) -> impl FnOnce(catelier_numerics::Error) -> Self {
        let what = what.into();
        move |source| Self::Numerics { what, source }
    }

    /// Advice on what to do next, where there is any.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::FewArtists { .. } => "a style is found by what sets it apart: give the works of another artist",
            Self::SameName { .. } => "give one of them another name, as in `NAME=FOLDER`",
            Self::SameWorks { .. } => "leave one of them out, or give both under one name",
            Self::NoWorks { .. } => {
                "give a folder with the artist's works, or an adapter whose header has the artist's prototypes"
            }
            Self::FewWorks { .. } => "give more works of the artist, or leave the artist out",
            Self::Prototype { .. } => "leave the artist out, or ask for new prototypes",
            Self::OtherModel { .. } => "make it again with the style model that is used here",
            Self::NoiseOnClusters { .. } => "ask for one prototype, or for no noise",
            Self::UnknownArtist { nearest: Some(nearest), .. } => return Some(format!("did you mean `{nearest}`?")),
            Self::File { .. } => "make it again, or fetch it again",
            Self::Features(source) => return source.hint(),
            Self::Federation { source, .. } => return source.hint(),
            Self::Numerics { source, .. } => return source.hint(),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

impl From<catelier_features::Error> for Error {
    fn from(source: catelier_features::Error) -> Self {
        match source {
            catelier_features::Error::Cancelled => Self::Cancelled,
            source => Self::Features(source),
        }
    }
}
