//! Decodes an image file to upright RGB pixels.
//!
//! The content decides the format, not the name. The orientation in EXIF is applied; 16-bit images, palettes, greys and
//! CMYK become 8-bit RGB; transparency is laid on white. An image that is too large is refused by its header, before
//! decoding.

use std::fmt;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Rgb, RgbImage, RgbaImage};

use super::{DataError, ImageFault, jpeg};

/// The longest side that is accepted.
pub(super) const LONGEST_SIDE_PX: u32 = 20_000;
/// The largest file, and the largest decoded image, that is accepted.
pub(super) const LARGEST_MEBIBYTES: u64 = 512;
const MEBIBYTE: u64 = 1 << 20;

/// A decoded image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// The pixels, upright and without transparency.
    pub pixels: RgbImage,
    /// Changes to the image that its owner may want to know.
    pub notices: Vec<ImageNotice>,
}

/// A change to an image that its owner may want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageNotice {
    /// Transparent parts were laid on white.
    AlphaFlattened,
    /// The image is smaller than the resolution and was enlarged.
    Enlarged {
        /// Width in pixels as stored.
        width: u32,
        /// Height in pixels as stored.
        height: u32,
    },
}

impl fmt::Display for ImageNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlphaFlattened => f.write_str("transparent parts were laid on white"),
            Self::Enlarged { width, height } => {
                write!(f, "{width}x{height} pixels are fewer than the resolution, the image was enlarged")
            }
        }
    }
}

impl DecodedImage {
    /// Reads an image file.
    ///
    /// # Errors
    /// [`DataError::Image`] names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Self::read(path).map_err(|fault| DataError::Image { path: path.to_owned(), fault })
    }

    /// [`open`](Self::open) with an error that does not name the file.
    pub(super) fn read(path: &Path) -> Result<Self, ImageFault> {
        expect_bytes(fs::metadata(path).map_err(ImageFault::Read)?.len())?;
        Self::decode(&fs::read(path).map_err(ImageFault::Read)?)
    }

    /// Decodes an image file's bytes.
    ///
    /// # Errors
    /// The fault of the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ImageFault> {
        if bytes.is_empty() {
            return Err(ImageFault::Empty);
        }
        let format = image::guess_format(bytes).map_err(|_| ImageFault::NotAnImage)?;
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.limits(decoder_limits());
        let mut decoder = reader.into_decoder().map_err(|error| fault(error, format))?;
        expect_size(decoder.dimensions(), decoder.total_bytes())?;
        if format == ImageFormat::Jpeg && !jpeg::is_complete(bytes) {
            return Err(ImageFault::Truncated);
        }
        // An image with unreadable EXIF is still an image.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut image = DynamicImage::from_decoder(decoder).map_err(|error| fault(error, format))?;
        image.apply_orientation(orientation);
        Ok(Self::on_white(image))
    }

    fn on_white(image: DynamicImage) -> Self {
        if !image.color().has_alpha() {
            return Self { pixels: image.into_rgb8(), notices: vec![] };
        }
        let image = image.into_rgba8();
        let is_transparent = image.pixels().any(|pixel| pixel.0[3] < u8::MAX);
        let notices = if is_transparent { vec![ImageNotice::AlphaFlattened] } else { vec![] };
        Self { pixels: flatten(&image), notices }
    }
}

/// Each pixel mixed with white according to its alpha.
fn flatten(image: &RgbaImage) -> RgbImage {
    const WHITE: u32 = 255;
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [red, green, blue, alpha] = image.get_pixel(x, y).0.map(u32::from);
        let mix = |colour: u32| ((colour * alpha + WHITE * (WHITE - alpha) + WHITE / 2) / WHITE) as u8;
        Rgb([mix(red), mix(green), mix(blue)])
    })
}

/// Memory limits for the decoded image and the decoder.
fn decoder_limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(2 * LARGEST_MEBIBYTES * MEBIBYTE);
    limits
}

fn expect_size((width, height): (u32, u32), bytes: u64) -> Result<(), ImageFault> {
    if width.max(height) > LONGEST_SIDE_PX {
        return Err(ImageFault::TooLong { width, height });
    }
    expect_bytes(bytes)
}

fn expect_bytes(bytes: u64) -> Result<(), ImageFault> {
    match bytes.div_ceil(MEBIBYTE) {
        mebibytes if mebibytes > LARGEST_MEBIBYTES => Err(ImageFault::TooLarge { mebibytes }),
        _ => Ok(()),
    }
}

fn fault(error: ImageError, format: ImageFormat) -> ImageFault {
    match error {
        ImageError::Unsupported(_) if !format.reading_enabled() => {
            let format = format!("{format:?}").to_uppercase();
            ImageFault::UnsupportedFormat { format }
        }
        ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => ImageFault::Truncated,
        error => ImageFault::Broken { reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests;
