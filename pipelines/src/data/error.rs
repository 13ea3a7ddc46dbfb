//! What can be wrong with pictures.

use std::io;
use std::path::PathBuf;

use super::frame::Resolution;
use super::picture::{LARGEST_MEBIBYTES, LONGEST_SIDE_PX};

/// Why one picture file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PictureFault {
    /// The file cannot be read.
    #[error("cannot be read ({0})")]
    Read(io::Error),
    /// The file has no bytes.
    #[error("is empty (0 bytes)")]
    Empty,
    /// The bytes do not start like any picture format.
    #[error("is not a picture")]
    NotAPicture,
    /// A picture format that is recognised but not read.
    #[error("is a {format} picture, which is not read")]
    UnsupportedFormat {
        /// The format's name.
        format: String,
    },
    /// A picture that starts well and has something wrong further on.
    #[error("is broken ({reason})")]
    Broken {
        /// What the decoder says.
        reason: String,
    },
    /// The file ends before the picture does.
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
    /// The file, or the picture when decoded, takes too much memory.
    #[error("takes {mebibytes} MiB, at most {LARGEST_MEBIBYTES} MiB are read")]
    TooLarge {
        /// Size in MiB, rounded up.
        mebibytes: u64,
    },
}

/// What can be wrong with a folder of pictures or what is asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Some pictures cannot be used; all of them are named.
    #[error("{} of {total} pictures in `{}` cannot be used: {}", faults.len(), folder.display(), named(faults))]
    Pictures {
        /// The folder.
        folder: PathBuf,
        /// Number of pictures looked at.
        total: usize,
        /// Each offending picture, relative to the folder, and its fault.
        faults: Vec<(String, PictureFault)>,
    },
    /// One picture cannot be used.
    #[error("`{}` {fault}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: PictureFault,
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
    /// A picture could not be resized.
    #[error("cannot resize a picture of {width}x{height} pixels ({reason})")]
    Resize {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// What the resizer says.
        reason: String,
    },
    /// There is nothing to draw batches from.
    #[error("no picture is shown even once in an epoch")]
    NothingToShow,
}

impl DataError {
    /// What to do next, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Pictures { .. } => {
                Some("open these files in a picture program and save them again, or move them out of the folder".into())
            }
            Self::Picture { .. } => Some("open the file in a picture program and save it again".into()),
            Self::Resolution { width, height } => Some(format!(
                "use a multiple of 64, such as {}x{}",
                nearest_multiple_of_64(*width),
                nearest_multiple_of_64(*height)
            )),
            Self::NothingToShow => Some("give at least one picture a repeat count of 1 or more".into()),
            Self::Resize { .. } => None,
        }
    }
}

fn nearest_multiple_of_64(px: u32) -> u32 {
    (px.saturating_add(32) / 64).max(1) * 64
}

fn named(faults: &[(String, PictureFault)]) -> String {
    let texts: Vec<String> = faults.iter().map(|(name, fault)| format!("`{name}` {fault}")).collect();
    texts.join("; ")
}
