//! Decodes an image file to upright RGB pixels.
//!
//! The content decides the format, not the name. The orientation in EXIF is applied; 16-bit images, palettes, greys and
//! CMYK become 8-bit RGB; transparency is laid on white. An image that would take too much memory is refused by its
//! header, before decoding.

use std::fmt;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Rgb, RgbImage, Rgba};

use super::{DataError, ImageFault, jpeg};

/// The longest side that is accepted.
pub(super) const LONGEST_SIDE_PX: u32 = 20_000;
/// The largest file that is accepted, and the most memory that its decoding and conversion may take beside the file.
pub(super) const LARGEST_MEBIBYTES: u64 = 512;
/// The most memory for the colour profile and the texts of a PNG, which are compressed.
const LARGEST_PNG_TEXT_BYTES: u64 = 32 << 20;
const MEBIBYTE: u64 = 1 << 20;
/// Bytes of a pixel of the result.
const RGB_BYTES: u64 = 3;

/// Bytes of a coefficient that the decoder keeps for each sample of a JPEG whose scans each hold a part of the image.
const COEFFICIENT_BYTES: u64 = 2;

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
        reader.limits(decoder_limits(format));
        let mut decoder = reader.into_decoder().map_err(|error| fault(error, format))?;
        expect_sides(decoder.dimensions())?;
        // An image with unreadable EXIF is still an image.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let jpeg = (format == ImageFormat::Jpeg).then(|| jpeg::Segments::of(bytes));
        let coefficients = if jpeg.is_some_and(jpeg::Segments::are_parts) { decoder.total_bytes() } else { 0 };
        expect_bytes(needed_bytes(&decoder, coefficients.saturating_mul(COEFFICIENT_BYTES), orientation))?;
        if jpeg.is_some_and(|segments| !segments.are_complete()) {
            return Err(ImageFault::Truncated);
        }
        let image = DynamicImage::from_decoder(decoder).map_err(|error| fault(error, format))?;
        let decoded = Self::on_white(image);
        Ok(Self { pixels: turned(decoded.pixels, orientation), ..decoded })
    }

    fn on_white(image: DynamicImage) -> Self {
        if !image.color().has_alpha() {
            return Self { pixels: image.into_rgb8(), notices: vec![] };
        }
        let (pixels, is_transparent) = flattened(&image);
        let notices = if is_transparent { vec![ImageNotice::AlphaFlattened] } else { vec![] };
        Self { pixels, notices }
    }
}

/// The most memory that decoding, conversion to RGB and turning take, each after the other.
fn needed_bytes(decoder: &impl ImageDecoder, in_decoder: u64, orientation: Orientation) -> u64 {
    let (width, height) = decoder.dimensions();
    let (stored, rgb) = (decoder.total_bytes(), u64::from(width) * u64::from(height) * RGB_BYTES);
    let converted = if decoder.color_type() == ColorType::Rgb8 { stored } else { stored.saturating_add(rgb) };
    let turned = if orientation == Orientation::NoTransforms { rgb } else { 2 * rgb };
    stored.saturating_add(in_decoder).max(converted).max(turned)
}

fn turned(pixels: RgbImage, orientation: Orientation) -> RgbImage {
    let mut image = DynamicImage::ImageRgb8(pixels);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

/// Rows that are converted together.
const STRIP_PX: u32 = 64;

/// The image on white, and whether any of its pixels is transparent. Converted strip by strip, so that no second copy of
/// the whole image exists.
fn flattened(image: &DynamicImage) -> (RgbImage, bool) {
    let (width, height) = (image.width(), image.height());
    let mut pixels = RgbImage::new(width, height);
    let (mut targets, mut is_transparent) = (pixels.pixels_mut(), false);
    for top in (0..height).step_by(STRIP_PX as usize) {
        let strip = image.crop_imm(0, top, width, STRIP_PX.min(height - top)).into_rgba8();
        is_transparent |= strip.pixels().any(|pixel| pixel.0[3] < u8::MAX);
        // `zip` asks the strip first, so its end takes no target from the next strip.
        strip.pixels().zip(targets.by_ref()).for_each(|(source, pixel)| *pixel = on_white(*source));
    }
    (pixels, is_transparent)
}

/// A pixel mixed with white according to its alpha.
fn on_white(pixel: Rgba<u8>) -> Rgb<u8> {
    const WHITE: u32 = 255;
    let [red, green, blue, alpha] = pixel.0.map(u32::from);
    let mix = |colour: u32| ((colour * alpha + WHITE * (WHITE - alpha) + WHITE / 2) / WHITE) as u8;
    Rgb([mix(red), mix(green), mix(blue)])
}

/// Memory limits for the decoder. That of a PNG holds for profile and texts alone: the image itself is measured before.
fn decoder_limits(format: ImageFormat) -> Limits {
    let mut limits = Limits::no_limits();
    let png = format == ImageFormat::Png;
    limits.max_alloc = Some(if png { LARGEST_PNG_TEXT_BYTES } else { LARGEST_MEBIBYTES * MEBIBYTE });
    limits
}

fn expect_sides((width, height): (u32, u32)) -> Result<(), ImageFault> {
    if width.min(height) == 0 {
        return Err(ImageFault::NoPixels { width, height });
    }
    if width.max(height) > LONGEST_SIDE_PX {
        return Err(ImageFault::TooLong { width, height });
    }
    Ok(())
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
