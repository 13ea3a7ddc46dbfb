//! Errors of the gallery.

use std::io;
use std::path::PathBuf;

/// An error of the gallery.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A folder could not be created or read.
    #[error("cannot use the folder `{}`", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file could not be written; an older file of that name is unchanged.
    #[error(transparent)]
    Write {
        /// The file and the system's error.
        #[from]
        source: catelier_numerics::Error,
    },
    /// A file that would be drawn is there already.
    #[error("`{}` exists already", path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// No artist has this name.
    #[error("expected the name of an artist in the gallery, found `{name}`")]
    UnknownArtist {
        /// The name as given.
        name: String,
    },
    /// The canvas cannot be reduced to this image size.
    #[error("expected an image size of 32, 64, 128 or 256 pixels, found {side}")]
    ImageSide {
        /// The requested size.
        side: usize,
    },
    /// The caller stopped the export.
    #[error("cancelled")]
    Cancelled,
}

/// A result whose error is the gallery's.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Advice on what to do next, where there is any.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Folder { .. } => Some("check that the folder can be made and read".to_owned()),
            Self::Write { source } => source.hint(),
            Self::FileExists { .. } => Some("name a new folder, or empty this one first".to_owned()),
            Self::UnknownArtist { .. } => Some("`catelier gallery list` names every artist".to_owned()),
            Self::ImageSide { .. } => Some("the embedded model paints 64 pixels a side".to_owned()),
            Self::Cancelled => None,
        }
    }
}
