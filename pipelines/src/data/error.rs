//! What can be wrong with images.

use std::io;
use std::path::PathBuf;

use super::decode::{LARGEST_MEBIBYTES, LONGEST_SIDE_PX};
use super::frame::Resolution;

/// Why one image file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageFault {
    /// The file cannot be read.
    #[error("cannot be read ({0})")]
    Read(io::Error),
    /// The file has no bytes.
    #[error("is empty (0 bytes)")]
    Empty,
    /// The bytes do not start like any image format.
    #[error("is not an image")]
    NotAnImage,
    /// An image format that is recognised but not read.
    #[error("is a {format} image, which is not read")]
    UnsupportedFormat {
        /// The format's name.
        format: String,
    },
    /// An image that starts well and has something wrong further on.
    #[error("is broken ({reason})")]
    Broken {
        /// What the decoder says.
        reason: String,
    },
    /// The file ends before the image does.
    #[error("is cut off before its end")]
    Truncated,
    /// A side is too long.
    #[error("is {width}x{height} pixels, at most {LONGEST_SIDE_PX} on a side are read")]
    TooLong {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The file, or the image when decoded, takes too much memory.
    #[error("takes {mebibytes} MiB, at most {LARGEST_MEBIBYTES} MiB are read")]
    TooLarge {
        /// Size in MiB, rounded up.
        mebibytes: u64,
    },
}

/// What can be wrong with a folder of images or what is asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Some images cannot be used; all of them are named.
    #[error("{} of {total} images in `{}` cannot be used: {}", faults.len(), folder.display(), named(faults))]
    Images {
        /// The folder.
        folder: PathBuf,
        /// Number of images looked at.
        total: usize,
        /// Each offending image, relative to the folder, and its fault.
        faults: Vec<(String, ImageFault)>,
    },
    /// One image cannot be used.
    #[error("`{}` {fault}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
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
        /// What the resizer says.
        reason: String,
    },
    /// There is nothing to draw batches from.
    #[error("no image is shown even once in an epoch")]
    NothingToShow,
}

impl DataError {
    /// What to do next, where there is something to do.
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
