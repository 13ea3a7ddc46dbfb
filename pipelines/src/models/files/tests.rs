use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use safetensors::tensor::{Dtype, TensorView};

use super::*;
use crate::models::shapes::TensorShape;

/// A safetensors file with f32 tensors of ones.
fn weights_bytes(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let data: Vec<Vec<u8>> =
        tensors.iter().map(|(_, shape)| 1f32.to_le_bytes().repeat(shape.iter().product())).collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, shape), data)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn write(folder: &Path, path: &str, bytes: &[u8]) {
    let path = folder.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The value of the first element of `unet`'s tensor `a`, and an error's message.
fn load(folder: &Path) -> Result<Tensor, String> {
    let weights = ModelFiles::folder(folder).weights("unet", DType::F32, &Device::Cpu);
    let weights = weights.map_err(|error| error.to_string())?;
    weights.get((2, 3), "a").map_err(|error| error.to_string())
}

#[test]
fn full_precision_is_taken_before_a_variant() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "unet/model.fp16.safetensors", &weights_bytes(&[("a", &[1])]));
    assert!(load(folder.path()).is_err());
    write(folder.path(), "unet/diffusion_pytorch_model.safetensors", &weights_bytes(&[("a", &[2, 3])]));
    assert_eq!(load(folder.path()).unwrap().dims(), [2, 3]);
}

#[test]
fn shards_are_read_through_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let index = serde_json::json!({ "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors" } });
    write(folder.path(), "unet/model.safetensors.index.json", index.to_string().as_bytes());
    write(folder.path(), "unet/model-00001-of-00002.safetensors", &weights_bytes(&[("a", &[2, 3])]));
    let torn = load(folder.path()).unwrap_err();
    assert!(torn.contains("model-00002-of-00002.safetensors"), "{torn}");
    write(folder.path(), "unet/model-00002-of-00002.safetensors", &weights_bytes(&[("b", &[1])]));
    load(folder.path()).unwrap();
}

#[test]
fn an_index_cannot_lead_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "outside.safetensors", &weights_bytes(&[("a", &[2, 3])]));
    let index = BTreeMap::from([("weight_map", BTreeMap::from([("a", "../outside.safetensors")]))]);
    write(folder.path(), "unet/model.safetensors.index.json", &serde_json::to_vec(&index).unwrap());
    assert!(load(folder.path()).is_err());
}

#[test]
fn pickles_are_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "unet/diffusion_pytorch_model.bin", b"not opened");
    let error = ModelFiles::folder(folder.path()).weights("unet", DType::F32, &Device::Cpu).err().unwrap();
    assert!(matches!(&error, Error::PickleWeights { found, .. } if found == &["diffusion_pytorch_model.bin"]));
    assert!(error.hint().unwrap().contains("safe_serialization=True"));
    let checkpoint = folder.path().join("model.ckpt");
    std::fs::write(&checkpoint, b"not opened").unwrap();
    let error = ModelFiles::folder(checkpoint).read("model_index.json").err().unwrap();
    assert!(matches!(error, Error::PickleWeights { .. }));
}

#[test]
fn every_missing_or_misshapen_tensor_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "unet/model.safetensors", &weights_bytes(&[("block.a", &[2, 3])]));
    let weights = ModelFiles::folder(folder.path()).weights("unet", DType::F32, &Device::Cpu).unwrap();
    let expected = [("a", vec![3, 2]), ("b", vec![4])];
    let expected = expected.map(|(name, shape)| TensorShape { name: name.into(), shape });
    let message = weights.at("block").expect(&expected).unwrap_err().to_string();
    assert_eq!(
        message,
        "the weights of `unet` do not fit its configuration: `block.a` should be [3, 2], found [2, 3]; \
         `block.b` should be [4], found nothing"
    );
}

#[test]
fn a_broken_file_is_an_error_that_names_it() {
    let whole = weights_bytes(&[("a", &[2, 3])]);
    for broken in [&b""[..], &b"\x80\x02}q"[..], &whole[..whole.len() - 5], &whole[..20]] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "unet/model.safetensors", broken);
        let message = load(folder.path()).unwrap_err();
        assert!(message.contains("model.safetensors"), "{message}");
    }
}

#[test]
fn half_precision_files_become_the_type_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, half) in [(Dtype::F16, [0x00, 0x3e]), (Dtype::BF16, [0xc0, 0x3f])] {
        let data = half.repeat(6);
        let view = TensorView::new(dtype, vec![2, 3], &data).unwrap();
        write(folder.path(), "unet/model.safetensors", &safetensors::serialize([("a", view)], None).unwrap());
        assert_eq!(load(folder.path()).unwrap().to_vec2::<f32>().unwrap(), [[1.5; 3]; 2]);
    }
}

#[test]
fn embedded_files_are_read_like_a_folder() {
    let bytes: &'static [u8] = weights_bytes(&[("a", &[2, 3])]).leak();
    let files: &'static [EmbeddedFile] = vec![
        EmbeddedFile { path: "unet/model.safetensors", bytes },
        EmbeddedFile { path: "unet/config.json", bytes: b"{\"in_channels\": 4}" },
    ]
    .leak();
    let files = ModelFiles::embedded(files);
    assert!(files.exists("unet/config.json") && !files.exists("vae/config.json"));
    let weights = files.weights("unet", DType::F32, &Device::Cpu).unwrap();
    assert_eq!(weights.get((2, 3), "a").unwrap().dims(), [2, 3]);
    let missing = files.read("vae/config.json").unwrap_err().to_string();
    assert_eq!(missing, "base `embedded` has no `vae/config.json`");
}

#[test]
fn random_weights_are_functions_of_seed_component_and_name() {
    let files = |seed| {
        let configs = ["unet/config.json", "vae/config.json"].map(|path| EmbeddedFile { path, bytes: b"{}" });
        ModelFiles::random("shape", Box::leak(Box::new(configs)), seed)
    };
    let draw = |seed, component: &str, name: &str| {
        let weights = files(seed).weights(component, DType::F32, &Device::Cpu).unwrap();
        let tensor = weights.at("block").get((40, 25, 2, 2), name).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let values = draw(1, "unet", "a.weight");
    assert_eq!(values, draw(1, "unet", "a.weight"));
    for other in [draw(2, "unet", "a.weight"), draw(1, "vae", "a.weight"), draw(1, "unet", "b.weight")] {
        assert_ne!(values, other);
    }
    // The fan in is 25 channels of four taps.
    assert!(values.iter().all(|value| value.abs() <= 0.1) && values.iter().any(|value| value.abs() > 0.09));
}

#[test]
fn random_norms_change_nothing_and_only_projecting_encoders_project() {
    let plain: &'static [EmbeddedFile] = &[EmbeddedFile { path: "text_encoder/config.json", bytes: b"{}" }];
    let bytes = br#"{"architectures": ["CLIPTextModelWithProjection"]}"#;
    let projecting: &'static [EmbeddedFile] =
        Box::leak(Box::new([EmbeddedFile { path: "text_encoder/config.json", bytes }]));
    let weights =
        |files| ModelFiles::random("shape", files, 1).weights("text_encoder", DType::F32, &Device::Cpu).unwrap();
    let norm = weights(plain).at("norm");
    assert_eq!(norm.get(3, "weight").unwrap().to_vec1::<f32>().unwrap(), [1.0; 3]);
    assert_eq!(norm.get(3, "bias").unwrap().to_vec1::<f32>().unwrap(), [0.0; 3]);
    assert!(!weights(plain).contains("text_projection.weight"));
    assert!(weights(projecting).contains("text_projection.weight"));
}
