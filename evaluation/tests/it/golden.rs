//! CLIP against what transformers computes.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use catelier_evaluation::clip::ClipFiles;
use catelier_evaluation::{Clip, Error, FeatureExtractor};
use catelier_numerics::tensor_file::{self, TensorFile};
use catelier_testkit::close::{assert_close, largest_difference};
use catelier_testkit::golden::{Fixture, Golden};
use catelier_testkit::tolerance::{self, Tolerance};
use image::RgbImage;

fn clip() -> Clip {
    Clip::from_folder(&Golden::open().model("tiny-clip"), &Device::Cpu).unwrap()
}

fn fixture() -> Fixture {
    Golden::open().fixture("clip")
}

fn picture() -> RgbImage {
    image::open(Golden::open().file("picture.png")).unwrap().to_rgb8()
}

/// The fixture's token ids as the model takes them.
fn ids(fixture: &Fixture) -> Tensor {
    fixture.tensor("ids").to_dtype(DType::U32).unwrap()
}

fn assert_output(fixture: &Fixture, name: &str, actual: &Tensor) {
    let allowed = tolerance::output(fixture.noise(name));
    assert_close(name, actual, &fixture.tensor(name), allowed);
}

#[test]
fn image_tower_agrees_before_its_last_norm() {
    let fixture = fixture();
    let hidden = clip().image_hidden(&fixture.tensor("pixel_values")).unwrap();
    assert_output(&fixture, "image_hidden", &hidden);
}

#[test]
fn image_features_agree() {
    let fixture = fixture();
    let features = clip().embed_pixels(&fixture.tensor("pixel_values")).unwrap();
    assert_output(&fixture, "image_embeds", &features);
}

#[test]
fn text_features_agree() {
    let fixture = fixture();
    let features = clip().embed_ids(&ids(&fixture)).unwrap();
    assert_output(&fixture, "text_embeds", &features);
}

#[test]
fn logits_agree() {
    let (clip, fixture) = (clip(), fixture());
    let image = clip.embed_pixels(&fixture.tensor("pixel_values")).unwrap();
    let text = clip.embed_ids(&ids(&fixture)).unwrap();
    let cosines = image.matmul(&text.t().unwrap()).unwrap();
    let logits = cosines.affine(clip.logit_scale(), 0.0).unwrap();
    assert_output(&fixture, "logits_per_image", &logits);
}

/// The prompts behind the fixture's ids are the first two of the text fixture.
#[test]
fn token_ids_agree() {
    let golden = Golden::open();
    let text = golden.fixture("text");
    let prompts = text.facts()["prompts"].as_array().unwrap().clone();
    let prompts: Vec<&str> = prompts[..2].iter().map(|prompt| prompt.as_str().unwrap()).collect();
    let ids = clip().token_ids(&prompts).unwrap();
    assert_close("ids", &ids, &fixture().tensor("ids"), Tolerance::Exact);
}

/// Every level is Pillow's; only the float32 normalisation may round differently.
#[test]
fn pixels_agree_with_pillow_to_the_last_level() {
    let pixels = clip().preprocessing().pixels(&[&picture()], &Device::Cpu).unwrap();
    assert_close("pixel_values", &pixels, &fixture().tensor("pixel_values"), Tolerance::Absolute(1e-6));
}

/// From the picture file to the feature, through our own resize.
#[test]
fn whole_way_from_picture_to_feature_agrees() {
    let features = clip().image_features(&[&picture()]).unwrap();
    let features = Tensor::new(features, &Device::Cpu).unwrap();
    assert_output(&fixture(), "image_embeds", &features);
}

#[test]
fn files_from_memory_give_the_same_model() {
    let folder = Golden::open().model("tiny-clip");
    let files: BTreeMap<String, Vec<u8>> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    let files = ClipFiles::from_bytes("tiny-clip", |name| files.get(name).map(Vec::as_slice)).unwrap();
    let from_memory = Clip::from_files(files, &Device::Cpu).unwrap();
    let from_folder = clip();
    assert_eq!(from_memory.extractor(), from_folder.extractor());
    assert_eq!(from_memory.image_features(&[&picture()]).unwrap(), from_folder.image_features(&[&picture()]).unwrap());
}

/// The fixture's weights after `change`, written back into a file's bytes.
fn with_weights(change: impl Fn(&str, Tensor) -> Option<Tensor>) -> ClipFiles {
    let folder = Golden::open().model("tiny-clip");
    let file = TensorFile::open(folder.join("model.safetensors")).unwrap();
    let tensors: BTreeMap<String, Tensor> = file
        .names()
        .filter_map(|name| {
            let tensor = file.tensor(name, &Device::Cpu).unwrap();
            Some((name.to_owned(), change(name, tensor)?))
        })
        .collect();
    let mut files = ClipFiles::folder(&folder).unwrap();
    files.weights = tensor_file::to_bytes(&tensors, &BTreeMap::new()).unwrap();
    files
}

#[test]
fn half_precision_weights_give_nearly_the_same_features() {
    let files = with_weights(|_, tensor| Some(tensor.to_dtype(DType::F16).unwrap()));
    let half = Clip::from_files(files, &Device::Cpu).unwrap();
    assert_ne!(half.extractor().sha256, clip().extractor().sha256);
    let fixture = fixture();
    let features = half.embed_pixels(&fixture.tensor("pixel_values")).unwrap();
    let difference = largest_difference(&features, &fixture.tensor("image_embeds"));
    assert!(0.0 < difference && difference < 5e-3, "{difference}");
}

#[test]
fn all_offending_tensors_are_listed_at_once() {
    let files = with_weights(|name, tensor| match name {
        "logit_scale" => None,
        "visual_projection.weight" => Some(tensor.t().unwrap().contiguous().unwrap()),
        _ => Some(tensor),
    });
    let Err(Error::TensorMismatch { offenders }) = Clip::from_files(files, &Device::Cpu) else {
        panic!("expected the offending tensors");
    };
    assert_eq!(offenders.len(), 2, "{offenders:?}");
    assert_eq!(offenders[0], "`logit_scale` is missing");
    assert!(offenders[1].starts_with("`visual_projection.weight` expected"), "{offenders:?}");
}

#[test]
fn a_picture_keeps_its_feature_whatever_stands_beside_it() {
    let clip = clip();
    let (one, two) = (picture(), image::imageops::flip_horizontal(&picture()));
    let together = clip.image_features(&[&one, &two]).unwrap();
    let alone = clip.image_features(&[&two]).unwrap();
    let apart = together[1].iter().zip(&alone[0]).map(|(a, b)| (a - b).abs());
    assert!(apart.fold(0.0, f32::max) < 1e-5);
    assert_ne!(together[0], together[1]);
}

#[test]
fn a_folder_without_weights_says_what_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "preprocessor_config.json"] {
        let golden = Golden::open().model("tiny-clip").join(name);
        std::fs::copy(golden, folder.path().join(name)).unwrap();
    }
    let error = Clip::from_folder(folder.path(), &Device::Cpu).err().unwrap();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    assert!(error.hint().unwrap().contains("save_pretrained"));
}
