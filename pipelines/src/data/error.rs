//! Errors of training images.

use std::io;
use std::path::PathBuf;

use super::decode::{LARGEST_MEBIBYTES, LONGEST_SIDE_PX};
use super::frame::Resolution;

/// The reason why an image file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageFault {
    /// The file cannot be read.
    #[error("cannot be read ({0})")]
    Read(io::Error),
    /// The file has no bytes.
    #[error("is empty (0 bytes)")]
    Empty,
    /// The first bytes are those of no image format.
    #[error("is not an image")]
    NotAnImage,
    /// An image format that is recognised but not supported.
    #[error("is a {format} image, which is not read")]
    UnsupportedFormat {
        /// The format's name.
        format: String,
    },
    /// The image starts correctly but has an error further on.
    #[error("is broken ({reason})")]
    Broken {
        /// The decoder's reason.
        reason: String,
    },
    /// The file ends before the image.
    #[error("is cut off before its end")]
    Truncated,
    /// A side has no pixels.
    #[error("is {width}x{height} pixels, so there is nothing to see")]
    NoPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// A side is too long.
    #[error("is {width}x{height} pixels, at most {LONGEST_SIDE_PX} on a side are read")]
    TooLong {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The file is too large, or decoding it takes too much memory.
    #[error("takes {mebibytes} MiB, at most {LARGEST_MEBIBYTES} MiB are read")]
    TooLarge {
        /// Size of the file, or the memory beside it, in MiB, rounded up.
        mebibytes: u64,
    },
}

/// An error of a folder of images, or of the settings for it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Some images cannot be used; all of them are named.
    #[error("{} of {total} images in `{}` cannot be used: {}", faults.len(), folder.display(), named(faults))]
    Images {
        /// The folder.
        folder: PathBuf,
        /// Number of images in the folder.
        total: usize,
        /// Each image that cannot be used, relative to the folder, and its fault.
        faults: Vec<(String, ImageFault)>,
    },
    /// One image cannot be used.
    #[error("`{}` {fault}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The fault of the image.
        fault: ImageFault,
    },
    /// The resolution does not fit the model.
    #[error(
        "the resolution {width}x{height} is not a multiple of {} pixels from {} on",
        Resolution::STEP,
        Resolution::STEP
    )]
    Resolution {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// An image could not be resized.
    #[error("cannot resize an image of {width}x{height} pixels ({reason})")]
    Resize {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The resizer's reason.
        reason: String,
    },
    /// All images have 0 repeats.
    #[error("no image is shown even once in an epoch")]
    NothingToShow,
}

impl DataError {
    /// What the user can do about the error, if that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Images { .. } => {
                Some("open these files in an image program and save them again, or move them out of the folder".into())
            }
            Self::Image { .. } => Some("open the file in an image program and save it again".into()),
            Self::Resolution { width, height } => Some(format!(
                "use a multiple of 64, such as {}x{}",
                nearest_multiple_of_64(*width),
                nearest_multiple_of_64(*height)
            )),
            Self::NothingToShow => Some("give at least one image a repeat count of 1 or more".into()),
            Self::Resize { .. } => None,
        }
    }
}

fn nearest_multiple_of_64(px: u32) -> u32 {
    (px.saturating_add(32) / 64).max(1) * 64
}

fn named(faults: &[(String, ImageFault)]) -> String {
    let texts: Vec<String> = faults.iter().map(|(name, fault)| format!("`{name}` {fault}")).collect();
    texts.join("; ")
}
