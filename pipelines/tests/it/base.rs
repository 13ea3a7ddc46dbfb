//! Bases from their configurations, and their fingerprints.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use catelier_adapters::{BaseFamily, Component, Fingerprint, Prediction};
use catelier_pipelines::models::base::{BaseConfig, BaseModel};
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::training::plan::weight_bytes;
use catelier_testkit::golden::Golden;

use crate::models::{MODELS, copy_of, every_file, files};

type Tensors = HashMap<String, Tensor>;

#[test]
fn a_configuration_lists_the_modules_and_parameters_of_the_weights() {
    for model in MODELS {
        let (files, config) = (files(model), BaseConfig::load(&files(model)).unwrap());
        let modules = config.modules();
        for (component, parameters) in config.parameters() {
            let stored = shapes(&files, component.name());
            assert_eq!(parameters, stored.values().map(|shape| elements(shape)).sum::<u64>(), "{model} {component}");
            for module in &modules {
                let Some((found, inside)) = Component::of_path(&module.path).filter(|(found, _)| *found == component)
                else {
                    continue;
                };
                let shape = [&module.kind.up_shape(1)[..1], &module.kind.down_shape(1)[1..]].concat();
                assert_eq!(stored[&format!("{inside}.weight")], shape, "{model} {found}");
            }
        }
        assert_eq!(modules, BaseModel::load(&files, DType::F32, &Device::Cpu).unwrap().modules());
    }
}

#[test]
fn planned_bytes_of_weights_are_those_of_the_files() {
    for model in MODELS {
        let files = files(model);
        let components = ["vae", "text_encoder", "text_encoder_2"];
        let there = components.into_iter().filter(|component| files.exists(&format!("{component}/config.json")));
        let shapes = there.flat_map(|component| shapes(&files, component).into_values());
        let expected: u64 =
            shapes.map(|shape| catelier_numerics::ops::weight_bytes(elements(&shape), DType::F32)).sum();
        assert_eq!(weight_bytes(&BaseConfig::load(&files).unwrap(), DType::F32), expected, "{model}");
    }
}

#[test]
fn the_family_of_a_configuration_is_that_of_its_modules() {
    let families = [BaseFamily::Sd1, BaseFamily::Sd2, BaseFamily::Sdxl];
    let embedded = ModelFiles::folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("../base"));
    let golden = MODELS.map(files).into_iter().zip(families);
    for (files, family) in golden.chain([(embedded, BaseFamily::Sd1)]) {
        let config = BaseConfig::load(&files).unwrap();
        assert_eq!((config.family(), BaseFamily::of_modules(&config.modules())), (family, Some(family)));
    }
}

#[test]
fn the_configuration_is_that_of_the_model() {
    for model in MODELS {
        let config = BaseConfig::load(&files(model)).unwrap();
        let base = BaseModel::load(&files(model), DType::F32, &Device::Cpu).unwrap();
        assert_eq!((config.family(), config.prediction()), (base.family, base.schedule.prediction()));
        assert_eq!((config.tokens(), config.resolution()), (base.text.tokenizer().max_length(), base.resolution));
        assert_eq!(config.fingerprint(&files(model)).unwrap(), base.fingerprint);
    }
}

#[test]
fn a_configuration_needs_no_weights() {
    let folder = copy_of("tiny-sdxl");
    let whole = BaseConfig::load(&ModelFiles::folder(folder.path())).unwrap();
    for file in every_file(folder.path()).iter().filter(|file| file.ends_with(".safetensors")) {
        std::fs::remove_file(folder.path().join(file)).unwrap();
    }
    let files = ModelFiles::folder(folder.path());
    let config = BaseConfig::load(&files).unwrap();
    assert_eq!((config.modules(), config.parameters()), (whole.modules(), whole.parameters()));
    assert!(config.fingerprint(&files).unwrap_err().to_string().contains("weights"));
}

#[test]
fn copies_in_f32_and_f16_have_one_fingerprint_and_a_copy_in_bf16_its_first_part() {
    for model in MODELS {
        let original = fingerprint(&Golden::open().model(model));
        let Fingerprint::V2 { signs, values: Some(_) } = Fingerprint::parse(&original) else { panic!("{original}") };
        let [half, brain] = [DType::F16, DType::BF16].map(|dtype| copy_as(&Golden::open().model(model), dtype));
        assert_eq!(fingerprint(half.path()), original, "{model} in f16");
        assert_eq!(fingerprint(copy_as(half.path(), DType::F32).path()), original, "{model} in f32 again");
        assert_eq!(fingerprint(brain.path()), format!("v2-{signs}"), "{model} in bf16");
        let widened = fingerprint(copy_as(brain.path(), DType::F32).path());
        assert!(Fingerprint::parse(&widened).agrees_with(Fingerprint::parse(&fingerprint(brain.path()))), "{model}");
    }
}

#[test]
fn other_bases_and_changed_tensors_have_other_fingerprints() {
    let original = fingerprint(&Golden::open().model("tiny-sd1"));
    for other in ["tiny-sd2", "tiny-sdxl"] {
        assert!(!agree(&original, &fingerprint(&Golden::open().model(other))));
    }
    let unet = |name: &str| format!("down_blocks.0.{name}");
    let scaled = |tensor: &Tensor| (tensor * 1.01).unwrap();
    let negated = |tensor: &Tensor| tensor.neg().unwrap();
    for name in [unet("resnets.0.norm1.weight"), unet("resnets.0.conv1.weight"), "conv_out.bias".into()] {
        for change in [scaled, negated] {
            let folder = copy_of("tiny-sd1");
            let (path, mut tensors) = weights(folder.path(), "unet");
            tensors.insert(name.clone(), change(&tensors[&name]));
            candle_core::safetensors::save(&tensors, &path).unwrap();
            assert!(!agree(&original, &fingerprint(folder.path())), "{name}");
        }
    }
}

#[test]
fn a_changed_base_is_told_from_a_copy_in_bf16_by_its_signs() {
    let copy = fingerprint(copy_as(&Golden::open().model("tiny-sd1"), DType::BF16).path());
    let folder = copy_of("tiny-sd1");
    let (path, mut tensors) = weights(folder.path(), "unet");
    // A tenth of the weights' size.
    let name = "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight";
    let noise = crate::models::normal("fine-tuned", tensors[name].dims());
    let size = tensors[name].sqr().unwrap().mean_all().unwrap().sqrt().unwrap();
    let change = noise.broadcast_mul(&(size * 0.1).unwrap()).unwrap();
    tensors.insert(name.into(), (&tensors[name] + change).unwrap());
    candle_core::safetensors::save(&tensors, &path).unwrap();
    assert!(!agree(&copy, &fingerprint(folder.path())));
}

#[test]
fn a_changed_prediction_changes_the_fingerprint_and_a_file_that_says_more_does_not() {
    let folder = copy_of("tiny-sd1");
    let original = fingerprint(folder.path());
    let change = |file: &str, key: &str, value: serde_json::Value| {
        let path = folder.path().join(file);
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
    };
    change("text_encoder/config.json", "torch_dtype", "float16".into());
    change("unet/config.json", "_diffusers_version", "9.9.9".into());
    change("unet/config.json", "dual_cross_attention", false.into());
    assert_eq!(fingerprint(folder.path()), original);
    change("scheduler/scheduler_config.json", "prediction_type", "v_prediction".into());
    assert_eq!(BaseConfig::load(&ModelFiles::folder(folder.path())).unwrap().prediction(), Prediction::Velocity);
    assert_ne!(fingerprint(folder.path()), original);
}

#[test]
fn older_names_of_the_same_weights_have_the_same_fingerprint() {
    let folder = copy_of("tiny-sd1");
    let original = fingerprint(folder.path());
    let legacy = "diffusion_pytorch_model.safetensors";
    std::fs::copy(folder.path().join("vae_legacy_keys").join(legacy), folder.path().join("vae").join(legacy)).unwrap();
    let (path, tensors) = weights(folder.path(), "text_encoder");
    let mut bare: Tensors =
        tensors.into_iter().map(|(name, tensor)| (name.trim_start_matches("text_model.").to_owned(), tensor)).collect();
    bare.insert("embeddings.position_ids".into(), Tensor::arange(0i64, 77, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&bare, &path).unwrap();
    assert_eq!(fingerprint(folder.path()), original);
}

fn agree(one: &str, other: &str) -> bool {
    Fingerprint::parse(one).agrees_with(Fingerprint::parse(other))
}

fn fingerprint(folder: &Path) -> String {
    let files = ModelFiles::folder(folder);
    BaseConfig::load(&files).unwrap().fingerprint(&files).unwrap()
}

/// Shapes of a component's weights by name, without integer tables such as position ids.
fn shapes(files: &ModelFiles, component: &str) -> BTreeMap<String, Vec<usize>> {
    let stored = files.stored_tensors(component).unwrap().into_iter();
    let weights = stored.filter(|tensor| !tensor.name.ends_with("position_ids"));
    weights.map(|tensor| (tensor.name, tensor.shape)).collect()
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().product::<usize>() as u64
}

/// The weights of a component, without integer tables such as position ids, and their file.
fn weights(folder: &Path, component: &str) -> (PathBuf, Tensors) {
    let names = ["diffusion_pytorch_model.safetensors", "model.safetensors"];
    let path = names.map(|name| folder.join(component).join(name)).into_iter().find(|path| path.is_file()).unwrap();
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    tensors.retain(|_, tensor| tensor.dtype().is_float());
    (path, tensors)
}

/// A copy of a model folder with its weights converted.
fn copy_as(from: &Path, dtype: DType) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for file in every_file(from) {
        let target = to.path().join(&file);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(from.join(&file), &target).unwrap();
        if file.ends_with(".safetensors") {
            let mut tensors = candle_core::safetensors::load(&target, &Device::Cpu).unwrap();
            for tensor in tensors.values_mut().filter(|tensor| tensor.dtype().is_float()) {
                *tensor = tensor.to_dtype(dtype).unwrap();
            }
            candle_core::safetensors::save(&tensors, &target).unwrap();
        }
    }
    to
}
