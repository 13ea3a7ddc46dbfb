//! Makes the frame for the model from an image: scaled with antialiasing, cropped, mirrored if asked for.

use candle_core::{Device, Tensor};
use catelier_numerics::noise::{Noise, Stream};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::{RgbImage, imageops};
use serde::{Deserialize, Serialize};

use super::DataError;
use crate::models::ImageSizes;

const CROP: Stream = Stream("data/crop");

/// Width and height of a frame, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolution {
    width: u32,
    height: u32,
}

impl Resolution {
    /// Each side is a multiple of this number of pixels, the width of a latent cell.
    pub const STEP: u32 = 8;

    /// A resolution with sides that are multiples of 8. A UNet with three levels below the first needs multiples of 64.
    ///
    /// # Errors
    /// [`DataError::Resolution`] for a side that is 0 or no multiple of 8.
    pub fn new(width: u32, height: u32) -> Result<Self, DataError> {
        let fits = |side: u32| side > 0 && side.is_multiple_of(Self::STEP);
        match fits(width) && fits(height) {
            true => Ok(Self { width, height }),
            false => Err(DataError::Resolution { width, height }),
        }
    }

    /// A square with sides of `px` pixels.
    ///
    /// # Errors
    /// [`DataError::Resolution`].
    pub fn square(px: u32) -> Result<Self, DataError> {
        Self::new(px, px)
    }

    /// Width in pixels.
    pub fn width(self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(self) -> u32 {
        self.height
    }
}

/// The part of an image that is kept if its aspect ratio differs from the frame's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// The middle.
    #[default]
    #[serde(rename = "center", alias = "centre")]
    Centre,
    /// A random position, a function of the seed, the image's index and whether it is the mirror image.
    Random,
}

/// Whether to train on mirror images too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mirror {
    /// Images only.
    #[default]
    Never,
    /// Each image and its mirror image, left for right.
    Also,
}

impl Crop {
    /// Position of the frame in the scaled image for one image of a run: the share, 0..=1, of the surplus width and
    /// height before it.
    pub(super) fn place(self, seed: u64, image: usize, mirrored: bool) -> (f64, f64) {
        match self {
            Self::Centre => (0.5, 0.5),
            Self::Random => {
                let draws = Noise::new(seed).uniforms(CROP, u64::from(mirrored), image as u64, 2);
                (draws[0], draws[1])
            }
        }
    }
}

impl Mirror {
    /// Whether each frame of an image is mirrored.
    pub(super) fn variants(self) -> &'static [bool] {
        match self {
            Self::Never => &[false],
            Self::Also => &[false, true],
        }
    }
}

/// An image at the model's resolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The pixels, at the resolution.
    pub pixels: RgbImage,
    /// Whether left and right are swapped.
    pub mirrored: bool,
    /// The image sizes that SDXL is conditioned on.
    pub sizes: ImageSizes,
}

impl Frame {
    /// The largest part of `image` with the frame's aspect ratio at `place` (each in 0..=1, 0.5 is the middle), scaled
    /// with a Lanczos filter of radius 3, widened for smaller scales so that it does not alias. Mirroring comes last.
    ///
    /// # Errors
    /// [`DataError::Resize`] if the resizer fails.
    pub fn cut(image: &RgbImage, resolution: Resolution, place: (f64, f64), mirrored: bool) -> Result<Self, DataError> {
        let (width, height) = image.dimensions();
        let (frame_width, frame_height) = (f64::from(resolution.width), f64::from(resolution.height));
        let scale = (frame_width / f64::from(width)).max(frame_height / f64::from(height));
        // Whole pixels of the scaled image, so that a crop without scaling copies pixels.
        let offset = |side: u32, frame: f64, place: f64| ((f64::from(side) * scale - frame) * place).round().max(0.0);
        let left = offset(width, frame_width, place.0);
        let top = offset(height, frame_height, place.1);
        let part = Part {
            left: (left / scale).min(f64::from(width) - frame_width / scale).max(0.0),
            top: (top / scale).min(f64::from(height) - frame_height / scale).max(0.0),
            width: (frame_width / scale).min(f64::from(width)),
            height: (frame_height / scale).min(f64::from(height)),
        };
        let mut pixels = resize(image, &part, resolution)?;
        if mirrored {
            imageops::flip_horizontal_in_place(&mut pixels);
        }
        let sizes = ImageSizes {
            original: (height, width),
            crop: (top as u32, left as u32),
            target: (resolution.height, resolution.width),
        };
        Ok(Self { pixels, mirrored, sizes })
    }

    /// The pixels as `[1, 3, height, width]` in f32, -1 for black and 1 for white.
    ///
    /// # Errors
    /// An error if the device is out of memory.
    pub fn tensor(&self, device: &Device) -> candle_core::Result<Tensor> {
        let (width, height) = self.pixels.dimensions();
        let (width, height) = (width as usize, height as usize);
        let bytes = Tensor::from_slice(self.pixels.as_raw(), (1, height, width, 3), &Device::Cpu)?;
        let values = (bytes.to_dtype(candle_core::DType::F32)? / 127.5)? - 1.0;
        values?.permute((0, 3, 1, 2))?.contiguous()?.to_device(device)
    }
}

/// A part of an image, in pixels of the image.
struct Part {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

fn resize(image: &RgbImage, part: &Part, resolution: Resolution) -> Result<RgbImage, DataError> {
    let (width, height) = image.dimensions();
    let failed = |reason: String| DataError::Resize { width, height, reason };
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3)).crop(
        part.left,
        part.top,
        part.width,
        part.height,
    );
    let mut result = RgbImage::new(resolution.width, resolution.height);
    // The pixel type is stated: code that chooses among all types at run time adds three megabytes to the binary.
    let source = TypedImageRef::<U8x3>::from_buffer(width, height, image.as_raw());
    let target = TypedImage::<U8x3>::from_buffer(resolution.width, resolution.height, &mut result);
    let (source, mut target) =
        (source.map_err(|error| failed(error.to_string()))?, target.map_err(|error| failed(error.to_string()))?);
    Resizer::new().resize_typed(&source, &mut target, &options).map_err(|error| failed(error.to_string()))?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;
    use proptest::prelude::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7 % 256) as u8, (y * 5 % 256) as u8, 99]))
    }

    fn square(px: u32) -> Resolution {
        Resolution::square(px).unwrap()
    }

    #[test]
    fn resolution_that_is_no_multiple_of_eight_is_refused() {
        for (width, height) in [(500, 512), (512, 500), (0, 64), (4, 4)] {
            assert!(Resolution::new(width, height).is_err());
        }
        let error = Resolution::square(500).unwrap_err();
        assert_eq!(error.to_string(), "the resolution 500x500 is not a multiple of 8 pixels from 8 on");
        assert_eq!(error.hint().unwrap(), "use a multiple of 64, such as 512x512");
        assert_eq!(Resolution::new(72, 64).unwrap().width(), 72);
    }

    #[test]
    fn image_of_the_right_size_is_not_touched() {
        let image = gradient(64, 64);
        assert_eq!(Frame::cut(&image, square(64), (0.5, 0.5), false).unwrap().pixels, image);
    }

    #[test]
    fn crop_without_scaling_copies_pixels() {
        let image = gradient(100, 64);
        for (place, left) in [(0.0, 0), (0.5, 18), (1.0, 36)] {
            let frame = Frame::cut(&image, square(64), (place, 0.5), false).unwrap();
            let expected = imageops::crop_imm(&image, left, 0, 64, 64).to_image();
            assert_eq!(frame.pixels, expected, "{place}");
            assert_eq!(frame.sizes, ImageSizes { original: (64, 100), crop: (0, left), target: (64, 64) });
        }
    }

    #[test]
    fn stripes_finer_than_the_frame_become_grey() {
        // Without antialiasing, stripes one pixel wide become wider stripes or one flat colour.
        let stripes = RgbImage::from_fn(512, 512, |x, _| Rgb([if x % 2 == 0 { 255 } else { 0 }; 3]));
        let frame = Frame::cut(&stripes, square(64), (0.5, 0.5), false).unwrap();
        // The filter is cut off at the image's border, which changes the outermost columns a little.
        for (x, _, pixel) in frame.pixels.enumerate_pixels() {
            let allowed = if (3..61).contains(&x) { 1 } else { 8 };
            assert!(pixel.0[0].abs_diff(128) <= allowed, "column {x}: {:?}", pixel.0);
        }
    }

    #[test]
    fn mirror_exchanges_left_and_right() {
        let image = gradient(96, 64);
        let plain = Frame::cut(&image, square(64), (0.0, 0.0), false).unwrap();
        let mirrored = Frame::cut(&image, square(64), (0.0, 0.0), true).unwrap();
        assert_eq!(imageops::flip_horizontal(&plain.pixels), mirrored.pixels);
    }

    #[test]
    fn tensor_is_channels_first_between_minus_one_and_one() {
        let image = RgbImage::from_fn(16, 8, |x, _| if x == 3 { Rgb([0, 255, 51]) } else { Rgb([255, 0, 51]) });
        let frame = Frame::cut(&image, Resolution::new(16, 8).unwrap(), (0.5, 0.5), false).unwrap();
        let tensor = frame.tensor(&Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [1, 3, 8, 16]);
        let rows = tensor.squeeze(0).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!([rows[0][0][3], rows[1][0][3]], [-1.0, 1.0]);
        assert_eq!([rows[0][7][4], rows[1][7][4]], [1.0, -1.0]);
        assert!((rows[2][0][0] + 0.6).abs() < 1e-6);
    }

    #[test]
    fn random_places_depend_on_seed_image_and_mirror_only() {
        let place = |seed, image, mirrored| Crop::Random.place(seed, image, mirrored);
        assert_eq!(place(1, 2, false), place(1, 2, false));
        let others = [place(2, 2, false), place(1, 3, false), place(1, 2, true)];
        assert!(others.iter().all(|other| *other != place(1, 2, false)));
        assert_eq!(Crop::Centre.place(1, 2, true), (0.5, 0.5));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_size_at_any_place_fills_the_frame(
            width in 1..300u32, height in 1..300u32, across in 1..9u32, down in 1..9u32,
            x in 0.0..=1.0f64, y in 0.0..=1.0f64,
        ) {
            let image = RgbImage::from_pixel(width, height, Rgb([200, 100, 50]));
            let resolution = Resolution::new(8 * across, 8 * down).unwrap();
            let frame = Frame::cut(&image, resolution, (x, y), false).unwrap();
            prop_assert_eq!(frame.pixels.dimensions(), (8 * across, 8 * down));
            // An image of one colour keeps it: no other colour enters at the border.
            prop_assert!(frame.pixels.pixels().all(|pixel| pixel.0 == [200, 100, 50]));
        }
    }
}
