//! CLIP and SigLIP against the results of transformers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use catelier_features::clip::{ClipFiles, ImageEncoder};
use catelier_features::{Clip, Error, ImageFeatures, TextFeatures};
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

fn image() -> RgbImage {
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
fn image_features_agree() {
    let fixture = fixture();
    let features = clip().images.embed(&fixture.tensor("pixel_values")).unwrap();
    assert_output(&fixture, "image_embeds", &features);
}

#[test]
fn text_features_agree() {
    let fixture = fixture();
    let features = clip().texts.embed(&ids(&fixture)).unwrap();
    assert_output(&fixture, "text_embeds", &features);
}

#[test]
fn logits_agree() {
    let (clip, fixture) = (clip(), fixture());
    let image = clip.images.embed(&fixture.tensor("pixel_values")).unwrap();
    let text = clip.texts.embed(&ids(&fixture)).unwrap();
    let cosines = image.matmul(&text.t().unwrap()).unwrap();
    let weights = TensorFile::open(Golden::open().model("tiny-clip").join("model.safetensors")).unwrap();
    let scale = weights.tensor("logit_scale", &Device::Cpu).unwrap().to_scalar::<f32>().unwrap().exp();
    let logits = cosines.affine(scale.into(), 0.0).unwrap();
    assert_output(&fixture, "logits_per_image", &logits);
}

/// The prompts behind the fixture's ids are the first two of the text fixture.
#[test]
fn token_ids_agree() {
    let golden = Golden::open();
    let text = golden.fixture("text");
    let prompts = text.facts()["prompts"].as_array().unwrap().clone();
    let prompts: Vec<&str> = prompts[..2].iter().map(|prompt| prompt.as_str().unwrap()).collect();
    let ids = clip().texts.token_ids(&prompts).unwrap();
    assert_close("ids", &ids, &fixture().tensor("ids"), Tolerance::Exact);
}

/// Every level is Pillow's; only the float32 normalisation may round differently.
#[test]
fn pixels_agree_with_pillow_to_the_last_level() {
    let pixels = clip().images.preprocessing().pixels(&[&image()], &Device::Cpu).unwrap();
    assert_close("pixel_values", &pixels, &fixture().tensor("pixel_values"), Tolerance::Absolute(1e-6));
}

/// From the image file to the feature, through our own resize.
#[test]
fn whole_way_from_image_to_feature_agrees() {
    let features = clip().image_features(&[&image()]).unwrap();
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
    assert_eq!(from_memory.image_features(&[&image()]).unwrap(), from_folder.image_features(&[&image()]).unwrap());
}

#[test]
fn an_image_tower_in_a_folder_of_its_own_gives_the_same_features() {
    let golden = Golden::open();
    let whole = || ClipFiles::folder(&golden.model("tiny-clip")).unwrap();
    let images_alone = |name: &str, tensor: Tensor| {
        (name.starts_with("vision_model.") || name.starts_with("visual_projection.")).then_some(tensor)
    };
    let config: serde_json::Value = serde_json::from_slice(&whole().config).unwrap();
    let mut vision = config["vision_config"].clone();
    vision["model_type"] = "clip_vision_model".into();
    vision["projection_dim"] = config["projection_dim"].clone();
    let alone = || ClipFiles {
        config: vision.to_string().into_bytes(),
        tokenizer: BTreeMap::new(),
        ..with_weights(images_alone)
    };
    let features = |files| ImageEncoder::from_files(files, &Device::Cpu).unwrap().image_features(&[&image()]).unwrap();
    assert_eq!(features(alone()), features(whole()));
    let refused = Clip::from_files(alone(), &Device::Cpu).err().unwrap().to_string();
    assert!(refused.contains("expected a model with both towers, found `clip_vision_model`"), "{refused}");
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
    let features = half.images.embed(&fixture.tensor("pixel_values")).unwrap();
    let difference = largest_difference(&features, &fixture.tensor("image_embeds"));
    assert!(0.0 < difference && difference < 5e-3, "{difference}");
}

#[test]
fn all_offending_tensors_are_listed_at_once() {
    let files = with_weights(|name, tensor| match name {
        "text_projection.weight" => None,
        "visual_projection.weight" => Some(tensor.t().unwrap().contiguous().unwrap()),
        _ => Some(tensor),
    });
    let Err(Error::TensorMismatch { offenders }) = Clip::from_files(files, &Device::Cpu) else {
        panic!("expected the offending tensors");
    };
    assert_eq!(offenders.len(), 2, "{offenders:?}");
    assert!(offenders[0].starts_with("`visual_projection.weight` expected"), "{offenders:?}");
    assert_eq!(offenders[1], "`text_projection.weight` is missing");
}

#[test]
fn an_image_keeps_its_feature_whatever_stands_beside_it() {
    let clip = clip();
    let (one, two) = (image(), image::imageops::flip_horizontal(&image()));
    let together = clip.image_features(&[&one, &two]).unwrap();
    let alone = clip.image_features(&[&two]).unwrap();
    let differences = together[1].iter().zip(&alone[0]).map(|(together, alone)| (together - alone).abs());
    assert!(differences.fold(0.0, f32::max) < 1e-5);
    assert_ne!(together[0], together[1]);
}

#[test]
fn an_empty_image_is_named_by_its_position() {
    let empty = RgbImage::new(0, 5);
    let error = clip().image_features(&[&image(), &empty]).unwrap_err();
    assert!(matches!(error, Error::EmptyImage { index: 1, .. }), "{error}");
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

/// The references of this crate's own, made by `recipe/golden_features.py`.
fn ours() -> Golden {
    Golden::at(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")))
}

fn siglip() -> Clip {
    Clip::from_folder(&ours().model("tiny-siglip"), &Device::Cpu).unwrap()
}

#[test]
fn siglip_features_agree() {
    let (clip, fixture) = (siglip(), ours().fixture("siglip"));
    let images = clip.images.embed(&fixture.tensor("pixel_values")).unwrap();
    assert_output(&fixture, "image_embeds", &images);
    assert_output(&fixture, "text_embeds", &clip.texts.embed(&ids(&fixture)).unwrap());
}

/// From the image file and the texts, through our own resize and `tokenizer.json`.
#[test]
fn siglip_inputs_agree() {
    let (clip, fixture) = (siglip(), ours().fixture("siglip"));
    let image = image::open(Path::new(REPOSITORY_GOLDEN).join("fixtures/picture.png")).unwrap().to_rgb8();
    let pixels = clip.images.preprocessing().pixels(&[&image], &Device::Cpu).unwrap();
    assert_close("pixel_values", &pixels, &fixture.tensor("pixel_values"), Tolerance::Absolute(1e-6));
    let texts = fixture.facts()["texts"].as_array().unwrap().clone();
    let texts: Vec<&str> = texts.iter().map(|text| text.as_str().unwrap()).collect();
    assert_close("ids", &clip.texts.token_ids(&texts).unwrap(), &fixture.tensor("ids"), Tolerance::Exact);
    assert_eq!(clip.text_features(&texts).unwrap().len(), texts.len());
}

#[test]
fn siglip_without_a_tokenizer_measures_images_and_says_what_texts_need() {
    let folder = ours().model("tiny-siglip");
    let mut files = ClipFiles::folder(&folder).unwrap();
    files.tokenizer.clear();
    let error = Clip::from_files(files, &Device::Cpu).err().unwrap();
    assert_eq!(error.to_string(), "CLIP `tiny-siglip` lacks the file `tokenizer.json`");
    assert!(error.hint().unwrap().contains("spiece.model"));

    let mut files = ClipFiles::folder(&folder).unwrap();
    files.tokenizer.clear();
    let images = ImageEncoder::from_files(files, &Device::Cpu).unwrap();
    assert_eq!(images.image_features(&[&image()]).unwrap(), siglip().image_features(&[&image()]).unwrap());
}

/// The model folder of the references of `ours()`; `CATELIER_GOLDEN_DIR` does not change it.
const REPOSITORY_GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden");

/// OpenCLIP's models use the exact GELU; the fixture has transformers' results for `tiny-clip` with that and other
/// settings.
#[test]
fn clip_with_openclips_settings_agrees() {
    let fixture = ours().fixture("openclip");
    let mut files = ClipFiles::folder(&Path::new(REPOSITORY_GOLDEN).join("tiny-clip")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&files.config).unwrap();
    for tower in ["text_config", "vision_config"] {
        for setting in ["hidden_act", "layer_norm_eps"] {
            config[tower][setting] = fixture.facts()[setting].clone();
        }
    }
    files.config = serde_json::to_vec(&config).unwrap();
    let clip = Clip::from_files(files, &Device::Cpu).unwrap();
    assert_output(&fixture, "image_embeds", &clip.images.embed(&fixture.tensor("pixel_values")).unwrap());
    assert_output(&fixture, "text_embeds", &clip.texts.embed(&ids(&fixture)).unwrap());
}

/// A tower of the embedded base.
fn embedded(tower: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../base")).join(tower)
}

#[test]
fn the_embedded_clip_agrees_on_its_own_weights() {
    let (clip, fixture) =
        (Clip::from_folder(&embedded("clip"), &Device::Cpu).unwrap(), ours().fixture("embedded_clip"));
    let texts = fixture.facts()["texts"].as_array().unwrap().clone();
    let texts: Vec<&str> = texts.iter().map(|text| text.as_str().unwrap()).collect();
    assert_close("ids", &clip.texts.token_ids(&texts).unwrap(), &fixture.tensor("ids"), Tolerance::Exact);
    assert_output(&fixture, "image_embeds", &clip.images.embed(&fixture.tensor("pixel_values")).unwrap());
    assert_output(&fixture, "text_embeds", &clip.texts.embed(&ids(&fixture)).unwrap());
}

#[test]
fn the_embedded_style_tower_agrees_on_its_own_weights() {
    let fixture = ours().fixture("embedded_style");
    let tower = ImageEncoder::from_folder(&embedded("style"), &Device::Cpu).unwrap();
    assert_output(&fixture, "image_embeds", &tower.embed(&fixture.tensor("pixel_values")).unwrap());
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let images = [image(), image::imageops::flip_horizontal(&image()), image::imageops::rotate90(&image())];
    let images: Vec<&RgbImage> = images.iter().cycle().take(20).collect();
    let features = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (clip().image_features(&images).unwrap(), clip().text_features(&["a", "b c"]).unwrap()))
    };
    assert_eq!(features(1), features(3));
}
