//! What can go wrong in the gallery.

use std::io;
use std::path::PathBuf;

/// What can go wrong in the gallery.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A folder could not be made or looked into.
    #[error("cannot use the folder `{}`", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file could not be written; whatever stood there before is untouched.
    #[error(transparent)]
    Write {
        /// Which file, and what the system said.
        #[from]
        source: catelier_numerics::Error,
    },
    /// A folder that must be empty holds something.
    #[error("expected an empty or new folder, found files in `{}`", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
    },
    /// No artist has this name.
    #[error("expected the name of an artist in the gallery, found `{name}`")]
    UnknownArtist {
        /// The name that was asked for.
        name: String,
    },
    /// A picture size that the canvas cannot be reduced to.
    #[error("expected a picture size of 32, 64, 128 or 256 pixels, found {side}")]
    PictureSide {
        /// The size that was asked for.
        side: usize,
    },
}

/// A result whose error is the gallery's.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What to do next, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Folder { .. } => Some("check that the folder can be made and read".to_owned()),
            Self::Write { source } => source.hint(),
            Self::FolderInUse { .. } => Some("name a new folder, or empty this one first".to_owned()),
            Self::UnknownArtist { .. } => Some("`catelier gallery list` names every artist".to_owned()),
            Self::PictureSide { .. } => Some("the embedded model paints 64 pixels a side".to_owned()),
        }
    }
}
