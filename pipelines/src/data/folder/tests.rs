use std::fs;
use std::ops::ControlFlow;

use candle_core::Device;
use image::{Rgb, RgbImage, Rgba, RgbaImage};
use tempfile::TempDir;

use super::*;
use crate::data::LatentCache;
use crate::models::Moments;

fn options() -> ImageOptions {
    ImageOptions {
        captions: CaptionOptions::default(),
        resolution: Resolution::square(16).unwrap(),
        crop: Crop::Centre,
        mirror: Mirror::Never,
        seed: 7,
    }
}

fn trigger() -> Trigger {
    Trigger::new("shs").unwrap()
}

/// Three images: one with the trigger, one without it, one transparent and small in a numbered folder.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let gradient = |width, height| RgbImage::from_fn(width, height, |x, y| Rgb([(x * 9) as u8, (y * 7) as u8, 40]));
    gradient(24, 20).save(path("a.png")).unwrap();
    fs::write(path("a.txt"), "a <shs> dog").unwrap();
    gradient(20, 30).save(path("b.png")).unwrap();
    fs::write(path("b.txt"), "a cat").unwrap();
    fs::create_dir(path("3_shs cow")).unwrap();
    RgbaImage::from_pixel(8, 8, Rgba([0, 0, 0, 100])).save(path("3_shs cow/c.png")).unwrap();
    folder
}

fn load(folder: &TempDir, options: &ImageOptions) -> TrainingImages {
    TrainingImages::load(folder.path(), &trigger(), options).unwrap()
}

#[test]
fn folder_becomes_framed_images_with_caption_pairs() {
    let found = load(&folder(), &options());
    let told: Vec<(&str, &str, &str, usize)> = found
        .images
        .iter()
        .map(|image| {
            let CaptionPair { with_trigger, without_trigger, .. } = &image.captions;
            (image.name.as_str(), with_trigger.as_str(), without_trigger.as_str(), image.repeats)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("3_shs cow/c.png", "shs cow", "cow", 3),
            ("a.png", "a <shs> dog", "a dog", 1),
            ("b.png", "shs, a cat", "a cat", 1),
        ]
    );
    assert!(found.images.iter().all(|image| image.frames[0].pixels.dimensions() == (16, 16)));
    let notices: Vec<String> = found.notices.iter().map(ToString::to_string).collect();
    assert_eq!(
        notices,
        [
            "`3_shs cow/c.png`: transparent parts were laid on white",
            "`3_shs cow/c.png`: 8x8 pixels are fewer than the resolution, the image was enlarged",
            "put the trigger `shs` in front of 1 captions: b.png",
        ]
    );
}

#[test]
fn all_bad_images_are_in_one_error() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("d.png"), b"").unwrap();
    fs::write(path("e.jpg"), b"a dog").unwrap();
    let png = fs::read(path("a.png")).unwrap();
    fs::write(path("f.png"), &png[..png.len() / 2]).unwrap();
    for name in ["d.txt", "e.txt", "f.txt"] {
        fs::write(path(name), "shs").unwrap();
    }
    let error = TrainingImages::load(folder.path(), &trigger(), &options()).unwrap_err();
    let start = format!(
        "3 of 6 images in `{}` cannot be used: `d.png` is empty (0 bytes); `e.jpg` is not an image; `f.png` is ",
        folder.path().display()
    );
    assert!(error.to_string().starts_with(&start), "{error}");
    assert_eq!(
        error.hint().unwrap(),
        "open these files in an image program and save them again, or move them out of the folder"
    );
}

#[test]
fn mirror_images_double_the_frames() {
    let options = ImageOptions { mirror: Mirror::Also, ..options() };
    let found = load(&folder(), &options);
    assert_eq!(found.frame_count(), 6);
    let [plain, mirrored] = found.images[1].frames.as_slice() else { panic!("expected two frames") };
    assert_eq!([plain.mirrored, mirrored.mirrored], [false, true]);
    assert_eq!(image::imageops::flip_horizontal(&plain.pixels), mirrored.pixels);
}

#[test]
fn digest_tells_images_captions_and_crops_apart() {
    let folder = folder();
    let digest = load(&folder, &options()).digest();
    assert_eq!(digest.len(), 64);
    assert_eq!(load(&folder, &options()).digest(), digest);
    let random = ImageOptions { crop: Crop::Random, ..options() };
    let other_crop = load(&folder, &random).digest();
    assert_ne!(other_crop, digest);
    assert_ne!(load(&folder, &ImageOptions { seed: 8, ..random }).digest(), other_crop);
    fs::write(folder.path().join("a.txt"), "a shs dog").unwrap();
    assert_ne!(load(&folder, &options()).digest(), digest);
}

#[test]
fn every_frame_is_encoded_once_and_told() {
    let options = ImageOptions { mirror: Mirror::Also, ..options() };
    let found = load(&folder(), &options);
    let mut told = vec![];
    let encode = |image: &candle_core::Tensor| {
        assert_eq!(image.dims(), [1, 3, 16, 16]);
        let mean = image.mean_keepdim((1, 2, 3))?;
        Ok(Moments { logvar: mean.zeros_like()?, mean })
    };
    let cache = LatentCache::encode(&found, &Device::Cpu, encode, |done, total| {
        told.push((done, total));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(told, (1..=6).map(|done| (done, 6)).collect::<Vec<_>>());
    let order: Vec<(usize, bool)> = cache.frames().iter().map(|frame| (frame.image, frame.mirrored)).collect();
    assert_eq!(order, [(0, false), (0, true), (1, false), (1, true), (2, false), (2, true)]);
    assert_eq!(cache.frames()[2].sizes.original, (20, 24));
}
