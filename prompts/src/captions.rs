//! Images and their captions, found in the usual folder layouts.
//!
//! The caption of an image is the first of these that exists: a `.txt` file of the same name, a `.caption` file of the
//! same name, the folder's `metadata.jsonl` (`file_name` with `text` or `prompt`), the words in the name of a folder
//! such as `10_sks dog` (kohya's layout, whose number is the number of repeats), and the caption that is given for all
//! images. [`CaptionedImage::source`] has the one that was used.

mod folder;
mod metadata;
mod pair;
mod sidecar;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Error, ImageProblem, Result};
use folder::Listing;
pub use pair::{CaptionPair, PairNotice, pair, pair_as_written, pair_text};

/// File name endings of images, in lower case.
pub const IMAGE_EXTENSIONS: &[&str] = &["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"];

/// Settings of [`collect`].
#[derive(Debug, Clone, Default)]
pub struct CaptionOptions {
    /// The caption of every image without one of its own.
    pub shared_caption: Option<String>,
}

/// The source of a caption.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CaptionSource {
    /// A `.txt` or `.caption` file beside the image.
    Sidecar(PathBuf),
    /// A line of a `metadata.jsonl`.
    Metadata {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
    /// The words in the name of the image's folder.
    FolderName(String),
    /// The caption given for all images.
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

/// An image file and its caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptionedImage {
    /// The image.
    pub path: PathBuf,
    /// Its caption, without whitespace around it; never empty.
    pub caption: String,
    /// The source of the caption.
    pub source: CaptionSource,
    /// Number of times that one epoch shows the image, at least 1.
    pub repeats: usize,
}

/// A part of the folder that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaptionNotice {
    /// A subfolder with images whose name does not start with a number.
    FolderSkipped {
        /// The subfolder's name.
        name: String,
        /// Number of images in it.
        images: usize,
    },
    /// A subfolder whose number of repeats is 0.
    FolderRepeatedZeroTimes {
        /// The subfolder's name.
        name: String,
        /// Number of images in it.
        images: usize,
    },
    /// Caption files without an image of the same name.
    CaptionsWithoutImage {
        /// The files, relative to the folder.
        files: Vec<String>,
    },
}

impl fmt::Display for CaptionNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FolderSkipped { name, images } => write!(
                f,
                "skipped the folder `{name}` with {images} images: its name does not start with a number of repeats, as in `1_{name}`"
            ),
            Self::FolderRepeatedZeroTimes { name, images } => {
                write!(f, "skipped the folder `{name}` with {images} images: its name asks for 0 repeats")
            }
            Self::CaptionsWithoutImage { files } => {
                write!(f, "unused caption files, no image has their name: {}", files.join(", "))
            }
        }
    }
}

/// The images of a folder with their captions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Sorted by path; at least one.
    pub images: Vec<CaptionedImage>,
    /// The parts of the folder that were left out.
    pub notices: Vec<CaptionNotice>,
}

/// Finds the images of a folder and their captions.
///
/// # Errors
/// [`Error::NoSuchFolder`], [`Error::NotAFolder`], [`Error::Read`], [`Error::NoImages`]; [`Error::Metadata`] names all
/// broken lines of a `metadata.jsonl`; [`Error::Images`] names all images without a caption, with an empty one, or with
/// one that is not UTF-8; [`Error::EmptySharedCaption`].
pub fn collect(folder: &Path, options: &CaptionOptions) -> Result<Collected> {
    let shared = shared_caption(options)?;
    let listing = Listing::read(folder)?;
    let mut images = Vec::new();
    let mut problems = Vec::new();
    for image in &listing.images {
        match listing.caption(image, shared)? {
            Ok(image) => images.push(image),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        return Ok(Collected { images, notices: listing.notices });
    }
    Err(Error::Images { folder: folder.to_owned(), total: listing.images.len(), problems })
}

fn shared_caption(options: &CaptionOptions) -> Result<Option<&str>> {
    match options.shared_caption.as_deref().map(str::trim) {
        Some("") => Err(Error::EmptySharedCaption),
        shared => Ok(shared),
    }
}

/// A caption, or the problem with it.
type Found<T> = std::result::Result<T, ImageProblem>;
