//! A training image.

use std::io::Cursor;

use catelier_workflows::pipelines::data::DecodedImage;
use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};

use crate::{Verdict, refused};

/// Memory beside twice the file's size.
pub(super) const SPARE_BYTES: u64 = 576 << 20;

pub(super) fn read(input: &[u8]) -> Verdict {
    match DecodedImage::decode(input) {
        Ok(image) => {
            assert!(image.pixels.width() > 0 && image.pixels.height() > 0, "an image without pixels was accepted");
            Verdict::Accepted
        }
        Err(fault) => refused(&fault),
    }
}

/// One small image in every format that is read, and in several layouts of PNG.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let pixels = RgbaImage::from_fn(7, 5, |x, y| Rgba([x as u8 * 30, y as u8 * 50, 90, if x == 3 { 40 } else { 255 }]));
    let image = DynamicImage::from(pixels);
    let opaque = DynamicImage::from(image.to_rgb8());
    let png = [image.clone(), image.to_luma8().into(), image.to_rgb16().into(), image.to_luma_alpha16().into()];
    let formats = [ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Tiff];
    let encode = |image: &DynamicImage, format| {
        let mut file = Cursor::new(Vec::new());
        image.write_to(&mut file, format).unwrap();
        file.into_inner()
    };
    let others = formats.iter().map(|format| encode(&opaque, *format));
    png.iter().map(|image| encode(image, ImageFormat::Png)).chain(others).collect()
}
