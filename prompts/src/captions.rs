//! Pictures and their captions, found in the folder layouts that people already have.
//!
//! For each picture the first of these that exists is its caption: a `.txt` file of the same name, a `.caption` file of
//! the same name, the folder's `metadata.jsonl` (`file_name` with `text` or `prompt`), the words of a folder called
//! like `10_sks dog` (kohya's layout, which also says how often each picture is shown), and last one caption given for
//! all. Which one it was is told for each picture.

mod folder;
mod metadata;
mod pair;
mod sidecar;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Error, PictureProblem, Result};
use folder::Listing;
pub use pair::{CaptionPair, PairNotice, pair, pair_as_written, pair_text};

/// File name endings of the pictures that are read, in small letters.
pub const PICTURE_EXTENSIONS: &[&str] = &["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// How captions are found.
#[derive(Debug, Clone, Default)]
pub struct CaptionOptions {
    /// The caption of every picture that brings none of its own.
    pub shared_caption: Option<String>,
}

/// Where a caption comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CaptionSource {
    /// A `.txt` or `.caption` file beside the picture.
    Sidecar(PathBuf),
    /// A line of a `metadata.jsonl`.
    Metadata {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
    /// The words in the name of the picture's folder.
    FolderName(String),
    /// The caption given for all pictures.
    Shared,
}

impl fmt::Display for CaptionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sidecar(path) => write!(f, "`{}`", path.display()),
            Self::Metadata { path, line } => write!(f, "`{}` line {line}", path.display()),
            Self::FolderName(name) => write!(f, "the folder name `{name}`"),
            Self::Shared => f.write_str("the caption given for all"),
        }
    }
}

/// A picture file and its caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionedImage {
    /// The picture.
    pub path: PathBuf,
    /// Its caption, without whitespace around it; never empty.
    pub caption: String,
    /// Where the caption comes from.
    pub source: CaptionSource,
    /// How often the picture is shown in one pass over the folder, at least 1.
    pub repeats: usize,
}

/// Something in the folder that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaptionNotice {
    /// A subfolder with pictures whose name does not start with a number.
    FolderSkipped {
        /// The subfolder's name.
        name: String,
        /// Number of pictures in it.
        pictures: usize,
    },
    /// A subfolder whose name asks for no repeats.
    FolderRepeatedZeroTimes {
        /// The subfolder's name.
        name: String,
        /// Number of pictures in it.
        pictures: usize,
    },
    /// Caption files that belong to no picture.
    CaptionsWithoutPicture {
        /// The files, relative to the folder.
        files: Vec<String>,
    },
}

impl fmt::Display for CaptionNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FolderSkipped { name, pictures } => write!(
                f,
                "skipped the folder `{name}` with {pictures} pictures: its name does not start with a number of repeats, as in `1_{name}`"
            ),
            Self::FolderRepeatedZeroTimes { name, pictures } => {
                write!(f, "skipped the folder `{name}` with {pictures} pictures: its name asks for 0 repeats")
            }
            Self::CaptionsWithoutPicture { files } => {
                write!(f, "unused caption files, no picture has their name: {}", files.join(", "))
            }
        }
    }
}

/// The pictures of a folder, and what was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Sorted by path; at least one.
    pub images: Vec<CaptionedImage>,
    /// What was left out and why.
    pub notices: Vec<CaptionNotice>,
}

/// Finds the pictures of a folder and their captions.
///
/// # Errors
/// When the folder does not exist, is a file, cannot be read or holds no picture; when a `metadata.jsonl` has broken
/// lines; when pictures have no caption, an empty one, or one that is not UTF-8 (all of them are named).
pub fn collect(folder: &Path, options: &CaptionOptions) -> Result<Collected> {
    let shared = shared_caption(options)?;
    let listing = Listing::read(folder)?;
    let mut images = Vec::new();
    let mut problems = Vec::new();
    for picture in &listing.pictures {
        match listing.caption(picture, shared)? {
            Ok(image) => images.push(image),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        return Ok(Collected { images, notices: listing.notices });
    }
    Err(Error::Pictures { folder: folder.to_owned(), total: listing.pictures.len(), problems })
}

fn shared_caption(options: &CaptionOptions) -> Result<Option<&str>> {
    match options.shared_caption.as_deref().map(str::trim) {
        Some("") => Err(Error::EmptySharedCaption),
        shared => Ok(shared),
    }
}

/// A caption, or why there is none.
type Found<T> = std::result::Result<T, PictureProblem>;
