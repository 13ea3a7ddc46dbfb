use std::time::{Duration, Instant};

use image::{ColorType, GrayImage, ImageBuffer, ImageEncoder, Luma, Rgba, RgbaImage};
use proptest::prelude::*;

use super::*;

/// Red in the top left corner, blue in the top right, otherwise green.
fn corners(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| match (x, y) {
        (x, y) if x < width / 4 && y < height / 4 => Rgb([255, 0, 0]),
        (x, y) if x >= width - width / 4 && y < height / 4 => Rgb([0, 0, 255]),
        _ => Rgb([0, 128, 0]),
    })
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(vec![]);
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn fault_of(bytes: &[u8]) -> String {
    DecodedImage::decode(bytes).unwrap_err().to_string()
}

/// A file whose header states this size, with hardly any data.
fn png_of_size(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = vec![];
    let mut writer = png::Encoder::new(&mut bytes, width, height).write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c]).unwrap();
    drop(writer);
    bytes
}

const FORMATS: [ImageFormat; 6] =
    [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Tiff];

#[test]
fn every_announced_format_decodes() {
    for format in FORMATS {
        let image = DecodedImage::decode(&encoded(corners(32, 24), format)).unwrap();
        assert_eq!(image.pixels.dimensions(), (32, 24), "{format:?}");
        let [red, green, blue] = image.pixels.get_pixel(1, 1).0;
        assert!(red > 200 && green < 60 && blue < 60, "{format:?}");
        assert_eq!(image.notices, [], "{format:?}");
    }
}

#[test]
fn cut_off_files_are_errors_in_every_format() {
    for format in FORMATS {
        let whole = encoded(corners(64, 48), format);
        for share in [0.3, 0.6, 0.9] {
            let cut = (whole.len() as f64 * share) as usize;
            assert!(DecodedImage::decode(&whole[..cut]).is_err(), "{format:?} cut at {cut} of {}", whole.len());
        }
    }
    let jpeg = encoded(corners(64, 48), ImageFormat::Jpeg);
    assert_eq!(fault_of(&jpeg[..jpeg.len() - 2]), "is cut off before its end");
}

#[test]
fn what_is_not_a_image_is_told() {
    assert_eq!(fault_of(b""), "is empty (0 bytes)");
    assert_eq!(fault_of(b"a dog"), "is not an image");
    assert_eq!(fault_of(b"\0\0\0\x1cftypavif\0\0\0\0"), "is a AVIF image, which is not read");
    let mut damaged = encoded(corners(8, 8), ImageFormat::Png);
    damaged[20] ^= 0xff;
    assert!(fault_of(&damaged).starts_with("is broken ("), "{}", fault_of(&damaged));
}

#[test]
fn an_image_without_pixels_is_refused() {
    let mut gif = encoded(corners(8, 5), ImageFormat::Gif);
    // The width of the whole image, behind `GIF89a`.
    gif[6..8].fill(0);
    assert_eq!(fault_of(&gif), "is 0x5 pixels, so there is nothing to see");
}

#[test]
fn unreadable_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    fs::write(&path, b"").unwrap();
    let error = DecodedImage::open(&path).unwrap_err();
    assert_eq!(error.to_string(), format!("`{}` is empty (0 bytes)", path.display()));
    assert_eq!(error.hint().unwrap(), "open the file in an image program and save it again");
    let error = DecodedImage::open(&folder.path().join("b.png")).unwrap_err();
    assert!(error.to_string().contains("b.png` cannot be read ("), "{error}");
}

#[test]
fn huge_images_are_refused_from_the_header() {
    let start = Instant::now();
    assert_eq!(fault_of(&png_of_size(30_000, 30_000)), "is 30000x30000 pixels, at most 20000 on a side are read");
    assert_eq!(fault_of(&png_of_size(1, 20_001)), "is 1x20001 pixels, at most 20000 on a side are read");
    assert_eq!(fault_of(&png_of_size(20_000, 30_000)), "is 20000x30000 pixels, at most 20000 on a side are read");
    // Grey: one byte of the file and three of the result for each pixel.
    assert_eq!(fault_of(&png_of_size(16_000, 16_000)), "takes 977 MiB, at most 512 MiB are read");
    assert!(!fault_of(&png_of_size(11_000, 11_000)).contains("MiB"));
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, 8000, 8000);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Sixteen);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c]).unwrap();
    drop(writer);
    assert_eq!(fault_of(&bytes), "takes 672 MiB, at most 512 MiB are read");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn flattening_in_strips_is_flattening() {
    let image = RgbaImage::from_fn(5, 3 * STRIP_PX + 7, |x, y| Rgba([x as u8, y as u8, 9, (x * y) as u8]));
    let (pixels, is_transparent) = flattened(&image.clone().into());
    assert!(is_transparent);
    for (x, y, pixel) in pixels.enumerate_pixels() {
        assert_eq!(*pixel, on_white(*image.get_pixel(x, y)), "{x} {y}");
    }
}

/// A JPEG with this EXIF orientation.
fn turned_jpeg(image: &RgbImage, orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let jpeg = encoded(image.clone(), ImageFormat::Jpeg);
    let mut turned = vec![0xff, 0xd8, 0xff, 0xe1];
    turned.extend(((exif.len() + 2) as u16).to_be_bytes());
    turned.extend(exif);
    turned.extend(&jpeg[2..]);
    turned
}

#[test]
fn camera_turns_are_applied() {
    let image = corners(48, 32);
    let upright = DecodedImage::decode(&turned_jpeg(&image, 1)).unwrap().pixels;
    assert!(upright.get_pixel(2, 2).0[0] > 200);
    // 6: rotate the stored image a quarter clockwise, so its top left corner goes to the top right.
    let turned = DecodedImage::decode(&turned_jpeg(&image, 6)).unwrap().pixels;
    assert_eq!(turned.dimensions(), (32, 48));
    assert!(turned.get_pixel(29, 2).0[0] > 200);
    assert!(turned.get_pixel(29, 45).0[2] > 200);
    // 2: mirrored.
    let mirrored = DecodedImage::decode(&turned_jpeg(&image, 2)).unwrap().pixels;
    assert!(mirrored.get_pixel(45, 2).0[0] > 200);
}

#[test]
fn transparency_is_laid_on_white_and_told() {
    let image = RgbaImage::from_fn(4, 1, |x, _| Rgba([0, 100, 200, [0, 51, 128, 255][x as usize]]));
    let image = DecodedImage::decode(&encoded(image, ImageFormat::Png)).unwrap();
    let pixels: Vec<[u8; 3]> = image.pixels.pixels().map(|pixel| pixel.0).collect();
    assert_eq!(pixels, [[255, 255, 255], [204, 224, 244], [127, 177, 227], [0, 100, 200]]);
    assert_eq!(image.notices, [ImageNotice::AlphaFlattened]);

    let opaque = RgbaImage::from_pixel(2, 2, Rgba([1, 2, 3, 255]));
    assert_eq!(DecodedImage::decode(&encoded(opaque, ImageFormat::Png)).unwrap().notices, []);
}

#[test]
fn greys_sixteen_bits_and_palettes_become_rgb() {
    let grey = GrayImage::from_pixel(2, 2, Luma([77]));
    let pixels = DecodedImage::decode(&encoded(grey, ImageFormat::Png)).unwrap().pixels;
    assert_eq!(pixels.get_pixel(1, 1).0, [77; 3]);

    let deep: ImageBuffer<Rgb<u16>, Vec<u16>> = ImageBuffer::from_pixel(2, 2, Rgb([0, 32_768, 65_535]));
    let pixels = DecodedImage::decode(&encoded(deep, ImageFormat::Png)).unwrap().pixels;
    assert_eq!(pixels.get_pixel(0, 0).0, [0, 128, 255]);

    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(vec![10, 20, 30, 40, 50, 60]);
    encoder.set_trns(vec![255, 0]);
    encoder.write_header().unwrap().write_image_data(&[0, 1]).unwrap();
    let image = DecodedImage::decode(&bytes).unwrap();
    assert_eq!(image.pixels.get_pixel(0, 0).0, [10, 20, 30]);
    assert_eq!(image.pixels.get_pixel(1, 0).0, [255; 3]);
    assert_eq!(image.notices, [ImageNotice::AlphaFlattened]);
}

#[test]
fn format_is_taken_from_the_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("really-a-png.jpg");
    fs::write(&path, encoded(corners(8, 8), ImageFormat::Png)).unwrap();
    assert_eq!(DecodedImage::open(&path).unwrap().pixels, corners(8, 8));
}

#[test]
fn grey_jpeg_decodes() {
    let mut bytes = vec![];
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95);
    encoder.write_image(&[90; 64], 8, 8, ColorType::L8.into()).unwrap();
    let [red, green, blue] = DecodedImage::decode(&bytes).unwrap().pixels.get_pixel(4, 4).0;
    assert!(red == green && green == blue && red.abs_diff(90) < 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn damaged_files_never_panic(format in 0..6usize, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = encoded(corners(16, 16), FORMATS[format]);
        for (index, value) in damage {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        if let Ok(image) = DecodedImage::decode(&bytes) {
            prop_assert!(image.pixels.width() <= LONGEST_SIDE_PX);
        }
    }
}
