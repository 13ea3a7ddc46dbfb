//! Features of real towers.

use candle_core::Device;
use catelier_features::ImageFeatures;
use catelier_features::clip::ImageEncoder;
use catelier_style::{Error, PooledTower, Pooling, StyleModel};
use image::{Rgb, RgbImage};

fn tower() -> ImageEncoder {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../base/style");
    ImageEncoder::from_folder(folder.as_ref(), &Device::Cpu).unwrap()
}

fn picture(shade: u8) -> RgbImage {
    RgbImage::from_fn(70, 64, |x, y| Rgb([shade ^ (x as u8), shade, (y as u8) * 3]))
}

#[test]
fn every_pooling_has_features_and_an_identity_of_its_own() {
    let pictures: Vec<RgbImage> = (0..9).map(|shade| picture(shade * 20)).collect();
    let pictures: Vec<&RgbImage> = pictures.iter().collect();
    let mut identities = Vec::new();
    for (pooling, width) in [("projection", 96), ("mean-deviation:2", 192), ("mean-deviation:3", 192), ("gram:2", 2080)]
    {
        let pooled = PooledTower::new(tower(), pooling.parse().unwrap()).unwrap();
        let features = pooled.image_features(&pictures).unwrap();
        assert_eq!((features.len(), features[0].len()), (9, width), "{pooling}");
        // A picture by itself, and as one of nine.
        let alone = pooled.image_features(&pictures[8..]).unwrap();
        assert!(features[8].iter().zip(&alone[0]).all(|(left, right)| (left - right).abs() < 1e-4), "{pooling}");
        let found = PooledTower::with_identity(tower(), &pooled.extractor().sha256).unwrap().unwrap();
        assert_eq!(found.extractor(), pooled.extractor());
        identities.push(pooled.extractor().sha256.clone());
    }
    assert!(PooledTower::with_identity(tower(), "another tower").unwrap().is_none());
    identities.dedup();
    assert_eq!(identities.len(), 4);
}

#[test]
fn a_block_that_a_tower_does_not_have_is_refused() {
    let Err(error) = PooledTower::new(tower(), Pooling::Gram { block: 4 }) else { panic!("block 4 of 3") };
    assert!(matches!(error, Error::Features(_)) && error.hint().is_some(), "{error:?}");
}

#[test]
fn directions_have_length_one() {
    let model = StyleModel::new(tower(), None).unwrap();
    let directions = model.directions(&[&picture(7), &picture(90)]).unwrap();
    for direction in directions {
        let length = direction.iter().map(|value| value * value).sum::<f32>();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
}
