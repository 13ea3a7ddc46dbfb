//! A folder of captioned images, decoded and cropped to frames.

use std::fmt;
use std::path::Path;

use catelier_numerics::hex;
use catelier_prompts::Trigger;
use catelier_prompts::captions::{
    self, CaptionNotice, CaptionOptions, CaptionPair, CaptionSource, CaptionedImage, PairNotice,
};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::decode::{DecodedImage, ImageNotice};
use super::frame::{Crop, Frame, Mirror, Resolution};
use super::{DataError, ImageFault};
use crate::error::Result;

/// Settings for the images of a folder.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// The source of captions.
    pub captions: CaptionOptions,
    /// Width and height of the frames.
    pub resolution: Resolution,
    /// The part of an image that is kept.
    pub crop: Crop,
    /// Whether to train on mirror images too.
    pub mirror: Mirror,
    /// Seed of random crops.
    pub seed: u64,
}

/// One image with its frames and captions.
#[derive(Debug, Clone)]
pub struct TrainingImage {
    /// Its path relative to the folder.
    pub name: String,
    /// Its caption with and without the trigger.
    pub captions: CaptionPair,
    /// The source of the caption.
    pub source: CaptionSource,
    /// How often an epoch shows the image, at least 1.
    pub repeats: usize,
    /// The frame, and its mirror image if the settings ask for it.
    pub frames: Vec<Frame>,
}

/// A notice about a folder for its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataNotice {
    /// A file was left out.
    Folder(CaptionNotice),
    /// An image was changed.
    Image {
        /// Its path relative to the folder.
        name: String,
        /// The change to the image.
        notice: ImageNotice,
    },
    /// The trigger was put in front of captions that lacked it.
    TriggerInserted {
        /// The trigger.
        trigger: String,
        /// The images, relative to the folder.
        names: Vec<String>,
    },
    /// A pair of captions that the owner should check.
    Captions {
        /// The image's path relative to the folder.
        name: String,
        /// The notice about the pair.
        notice: PairNotice,
    },
}

impl fmt::Display for DataNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(notice) => notice.fmt(f),
            Self::Image { name, notice } => write!(f, "`{name}`: {notice}"),
            Self::TriggerInserted { trigger, names } => {
                write!(f, "put the trigger `{trigger}` in front of {} captions: {}", names.len(), names.join(", "))
            }
            Self::Captions { name, notice } => write!(f, "`{name}`: {notice}"),
        }
    }
}

/// The frames and captions of a folder.
#[derive(Debug, Clone)]
pub struct TrainingImages {
    /// Sorted by path; at least one.
    pub images: Vec<TrainingImage>,
    /// Notices for the folder's owner.
    pub notices: Vec<DataNotice>,
}

impl TrainingImages {
    /// Collects captions, decodes all images (on all cores) and crops them to frames.
    ///
    /// # Errors
    /// Those of [`captions::collect`] and [`captions::pair`]; [`DataError::Images`] names every image that cannot be
    /// decoded.
    pub fn load(folder: &Path, trigger: &Trigger, options: &ImageOptions) -> Result<Self> {
        let collected = captions::collect(folder, &options.captions)?;
        let pairs = captions::pair(&collected.images, trigger)?;
        let decoded = decode_all(folder, &collected.images, options)?;
        let mut notices: Vec<DataNotice> = collected.notices.into_iter().map(DataNotice::Folder).collect();
        let mut images = Vec::with_capacity(pairs.len());
        for ((image, captions), (frames, changes)) in collected.images.into_iter().zip(pairs).zip(decoded) {
            let name = relative(&image.path, folder);
            let change = |notice| DataNotice::Image { name: name.clone(), notice };
            notices.extend(changes.into_iter().map(change));
            let look = |notice: &PairNotice| DataNotice::Captions { name: name.clone(), notice: notice.clone() };
            notices.extend(captions.notices.iter().map(look));
            images.push(TrainingImage { name, captions, source: image.source, repeats: image.repeats, frames });
        }
        notices.extend(inserted(&images, trigger));
        Ok(Self { images, notices })
    }

    /// Number of frames of all images, including mirror images.
    pub fn frame_count(&self) -> usize {
        self.images.iter().map(|image| image.frames.len()).sum()
    }

    /// SHA-256 in hexadecimal digits over every image's name, captions, repeats and pixels: equal for runs with the
    /// same data.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for image in &self.images {
            add(image.name.as_bytes());
            add(image.captions.with_trigger.as_bytes());
            add(image.captions.without_trigger.as_bytes());
            add(&(image.repeats as u64).to_le_bytes());
            for frame in &image.frames {
                let (width, height) = frame.pixels.dimensions();
                add(&[width.to_le_bytes(), height.to_le_bytes()].concat());
                add(frame.pixels.as_raw());
            }
        }
        hex::encode(hash.finalize())
    }
}

type Decoded = (Vec<Frame>, Vec<ImageNotice>);

/// Decodes every image and crops it to frames; one error names all images that cannot be decoded.
fn decode_all(folder: &Path, images: &[CaptionedImage], options: &ImageOptions) -> Result<Vec<Decoded>> {
    let numbered = images.par_iter().enumerate();
    let decoded: Vec<std::result::Result<Decoded, FrameFault>> =
        numbered.map(|(number, image)| decode(image, number, options)).collect();
    let mut whole = Vec::with_capacity(images.len());
    let mut faults = Vec::new();
    for (image, decoded) in images.iter().zip(decoded) {
        match decoded {
            Ok(decoded) => whole.push(decoded),
            Err(FrameFault::Image(fault)) => faults.push((relative(&image.path, folder), fault)),
            Err(FrameFault::Resize(error)) => return Err(error.into()),
        }
    }
    match faults.is_empty() {
        true => Ok(whole),
        false => Err(DataError::Images { folder: folder.to_owned(), total: images.len(), faults }.into()),
    }
}

enum FrameFault {
    Image(ImageFault),
    Resize(DataError),
}

fn decode(image: &CaptionedImage, number: usize, options: &ImageOptions) -> std::result::Result<Decoded, FrameFault> {
    let DecodedImage { pixels, mut notices } = DecodedImage::read(&image.path).map_err(FrameFault::Image)?;
    let (width, height) = pixels.dimensions();
    if width < options.resolution.width() || height < options.resolution.height() {
        notices.push(ImageNotice::Enlarged { width, height });
    }
    let frames = options.mirror.variants().iter().map(|&mirrored| {
        let place = options.crop.place(options.seed, number, mirrored);
        Frame::cut(&pixels, options.resolution, place, mirrored).map_err(FrameFault::Resize)
    });
    Ok((frames.collect::<std::result::Result<_, _>>()?, notices))
}

fn inserted(images: &[TrainingImage], trigger: &Trigger) -> Option<DataNotice> {
    let lacking = images.iter().filter(|image| image.captions.inserted);
    let names: Vec<String> = lacking.map(|image| image.name.clone()).collect();
    (!names.is_empty()).then(|| DataNotice::TriggerInserted { trigger: trigger.word().to_owned(), names })
}

fn relative(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests;
