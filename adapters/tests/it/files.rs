//! Files from other tools: their spellings, damage, privacy.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::file::{self, Disclosure, Format, Integrity, Metadata, TrainedOn, UnmatchedKeys};
use catelier_adapters::{
    Adapter, AdapterKind, BaseFamily, DoraFactors, Error, LayerUpdate, LoraConfig, LoraFactors, ModuleInfo, ModuleKind,
    Prediction, Targets,
};
use catelier_numerics::tensor_file::{self, TensorFile};
use serde_json::json;
use tempfile::{TempDir, tempdir};

use crate::base::{assert_same_adapter, values};

const BLOCK: &str = "mid_block.attentions.0.transformer_blocks.0";

fn base() -> Vec<ModuleInfo> {
    let linear = |name: &str, in_features| ModuleInfo {
        path: format!("unet.{BLOCK}.{name}"),
        kind: ModuleKind::Linear { in_features, out_features: 8 },
    };
    let mut modules: Vec<_> = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q"]
        .iter()
        .map(|name| linear(name, 8))
        .collect();
    modules.extend([linear("attn2.to_k", 768), linear("attn2.to_v", 768), linear("attn2.to_out.0", 8)]);
    modules.push(ModuleInfo {
        path: "unet.mid_block.attentions.0.proj_in".to_owned(),
        kind: ModuleKind::Conv2d { in_channels: 8, out_channels: 8, kernel: 1, stride: 1, padding: 0 },
    });
    modules
}

fn wave(shape: &[usize], phase: f32) -> Tensor {
    let values = (0..shape.iter().product()).map(|i: usize| (1.7 * i as f32 + phase).sin());
    Tensor::from_vec(values.collect(), shape, &Device::Cpu).unwrap()
}

fn adapter() -> Adapter {
    let config = LoraConfig { rank: 2, alpha: 3.0, dropout: 0.0, targets: Targets::everything() };
    let (fresh, _) = Adapter::init(&config, &base(), 5, &Device::Cpu).unwrap();
    let trained = |(path, update): (&str, &LayerUpdate)| {
        let LoraFactors { down, up, alpha } = update.low_rank();
        let up = wave(up.dims(), path.len() as f32);
        (path.to_owned(), LoraFactors::new(down.clone(), up, *alpha).unwrap())
    };
    fresh.detached().iter().map(trained).collect()
}

type Tensors = BTreeMap<String, Tensor>;

/// Writes tensors with a header; returns the file and the folder that holds it.
fn written(tensors: &Tensors, header: &[(&str, &str)]) -> (TempDir, std::path::PathBuf) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("style.safetensors");
    let header = header.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    tensor_file::write(&path, tensors, &header).unwrap();
    (folder, path)
}

fn read(tensors: &Tensors) -> Result<file::LoadedAdapter, Error> {
    let (_folder, path) = written(tensors, &[]);
    file::read(&path, &base())
}

/// The factors of one module under a stem, with a format's endings.
fn pair(stem: &str, down: &str, up: &str) -> Tensors {
    let tensors = [(format!("{stem}{down}"), wave(&[2, 8], 0.1)), (format!("{stem}{up}"), wave(&[8, 2], 0.2))];
    tensors.into_iter().collect()
}

fn kohya_pair(module: &str) -> Tensors {
    let stem = format!("lora_unet_{}_{}", BLOCK.replace('.', "_"), module.replace('.', "_"));
    pair(&stem, ".lora_down.weight", ".lora_up.weight")
}

#[test]
fn every_spelling_of_one_module_is_the_same_adapter() {
    let path = format!("{BLOCK}.attn1.to_out.0");
    let old = format!("unet.{BLOCK}.attn1.processor.to_out");
    let spellings = [
        kohya_pair("attn1.to_out.0"),
        pair("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_out_0", ".lora_down.weight", ".lora_up.weight"),
        pair(&format!("unet.{path}"), ".lora.down.weight", ".lora.up.weight"),
        pair(&format!("unet.{path}"), ".lora_A.weight", ".lora_B.weight"),
        pair(&path, ".lora.down.weight", ".lora.up.weight"),
        pair(&path, ".lora_A.default.weight", ".lora_B.default.weight"),
        pair(&format!("base_model.model.{path}"), ".lora_A.weight", ".lora_B.weight"),
        pair(&format!("base_model.model.unet.{path}"), ".lora_A.weight", ".lora_B.weight"),
        pair(&old, "_lora.down.weight", "_lora.up.weight"),
    ];
    let expected = read(&spellings[0]).unwrap().adapter;
    assert_eq!(expected.iter().next().unwrap().0, format!("unet.{path}"));
    for tensors in &spellings {
        let loaded = read(tensors).unwrap_or_else(|error| panic!("{:?}: {error}", tensors.keys()));
        assert_same_adapter(&loaded.adapter, &expected);
    }
}

#[test]
fn one_pixel_convolutions_may_have_two_or_four_dimensions() {
    let stem = "lora_unet_mid_block_attentions_0_proj_in";
    let flat = pair(stem, ".lora_down.weight", ".lora_up.weight");
    let four = flat.iter().map(|(name, tensor)| {
        let shape = [tensor.dims(), &[1, 1]].concat();
        (name.clone(), tensor.reshape(shape).unwrap())
    });
    let (flat, four) = (read(&flat).unwrap().adapter, read(&four.collect()).unwrap().adapter);
    assert_same_adapter(&flat, &four);
    assert!(flat.iter().next().unwrap().1.is_convolution());
}

#[test]
fn linear_factors_may_have_four_dimensions() {
    let four = kohya_pair("attn1.to_q").into_iter().map(|(name, tensor)| {
        let shape = [tensor.dims(), &[1, 1]].concat();
        (name, tensor.reshape(shape).unwrap())
    });
    let loaded = read(&four.collect()).unwrap().adapter;
    assert_same_adapter(&loaded, &read(&kohya_pair("attn1.to_q")).unwrap().adapter);
}

#[test]
fn half_and_double_precision_files_are_read_as_f32() {
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        let tensors = kohya_pair("attn1.to_q").into_iter();
        let tensors: Tensors = tensors.map(|(name, t)| (name, t.to_dtype(dtype).unwrap())).collect();
        let loaded = read(&tensors).unwrap().adapter;
        let (_, update) = loaded.iter().next().unwrap();
        assert_eq!(update.low_rank().down.dtype(), DType::F32);
        let expected = tensors.values().next().unwrap();
        assert_eq!(values(&update.low_rank().down), values(expected));
    }
}

#[test]
fn integer_factors_are_refused() {
    let tensors = kohya_pair("attn1.to_q").into_iter();
    let tensors = tensors.map(|(name, t)| (name, t.to_dtype(DType::U8).unwrap()));
    let error = read(&tensors.collect()).unwrap_err();
    assert!(matches!(error, Error::UnexpectedTensor { .. }), "{error}");
}

#[test]
fn an_alpha_of_several_numbers_is_refused() {
    let mut tensors = kohya_pair("attn1.to_q");
    let stem = tensors.keys().next().unwrap().split_once(".lora").unwrap().0.to_owned();
    tensors.insert(format!("{stem}.alpha"), wave(&[2], 0.0));
    let error = read(&tensors).unwrap_err();
    assert!(error.to_string().contains("a single number"), "{error}");
}

#[test]
fn a_file_that_matches_nothing_says_whose_it_is() {
    let stem = "lora_unet_down_blocks_7_attn2_to_k";
    let tensors = [
        (format!("{stem}.lora_down.weight"), wave(&[2, 1024], 0.1)),
        (format!("{stem}.lora_up.weight"), wave(&[8, 2], 0.2)),
    ];
    let error = read(&tensors.into_iter().collect()).unwrap_err();
    assert!(matches!(error, Error::NothingMatches { total: 1, .. }), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("2.x") && hint.contains("1.x"), "{hint}");
}

#[test]
fn a_wrong_width_names_module_expected_found_and_family() {
    let stem = format!("unet.{BLOCK}.attn2.to_k");
    let tensors = [
        (format!("{stem}.lora.down.weight"), wave(&[2, 2048], 0.1)),
        (format!("{stem}.lora.up.weight"), wave(&[8, 2], 0.2)),
    ];
    let error = read(&tensors.into_iter().collect()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("attn2.to_k`: expected down [2, 768], found [2, 2048]"), "{text}");
    let Error::WrongShapes { file_family, base_family, .. } = error else { panic!("{text}") };
    assert_eq!((file_family, base_family), (Some(BaseFamily::Sdxl), Some(BaseFamily::Sd1)));
}

#[test]
fn keys_without_a_place_are_refused_unless_they_are_to_be_skipped() {
    let mut tensors = kohya_pair("attn1.to_q");
    tensors.extend(kohya_pair("attn9.to_q"));
    tensors.insert("stray".to_owned(), wave(&[1], 0.0));
    let (_folder, path) = written(&tensors, &[]);
    let error = file::read(&path, &base()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("attn9_to_q") && text.contains("stray") && text.contains("unet 1/2"), "{text}");
    let loaded = file::read_with(&path, &base(), UnmatchedKeys::Skip).unwrap();
    assert_eq!((loaded.adapter.len(), loaded.report.unmatched.len()), (1, 3));
}

#[test]
fn half_a_pair_is_refused() {
    let mut tensors = kohya_pair("attn1.to_q");
    let up = tensors.keys().find(|name| name.contains("lora_up")).unwrap().clone();
    tensors.remove(&up);
    let error = read(&tensors).unwrap_err();
    assert!(matches!(error, Error::IncompleteModules { .. }), "{error}");
    assert!(error.to_string().contains("no up beside `lora_unet_mid_block"), "{error}");
}

/// The tensors of a DoRA under a stem in kohya's spelling.
fn kohya_dora(module: &str) -> Tensors {
    let mut tensors = kohya_pair(module);
    let stem = tensors.keys().next().unwrap().split_once(".lora").unwrap().0.to_owned();
    tensors.insert(format!("{stem}.dora_scale"), wave(&[8, 1], 2.0).abs().unwrap());
    tensors
}

#[test]
fn every_spelling_of_magnitudes_is_the_same_adapter() {
    let expected = read(&kohya_dora("attn1.to_q")).unwrap().adapter;
    let stem = format!("unet.{BLOCK}.attn1.to_q");
    for ending in [".lora_magnitude_vector", ".lora_magnitude_vector.weight", ".lora_magnitude_vector.default.weight"] {
        let mut tensors = pair(&stem, ".lora_A.weight", ".lora_B.weight");
        tensors.insert(format!("{stem}{ending}"), wave(&[8], 2.0).abs().unwrap());
        assert_same_adapter(&read(&tensors).unwrap().adapter, &expected);
    }
}

#[test]
fn magnitudes_of_a_convolution_are_read_in_the_shapes_of_lycoris_and_peft() {
    let stem = "lora_unet_mid_block_attentions_0_proj_in";
    for shape in [&[8, 1, 1, 1][..], &[1, 8, 1, 1], &[8, 1], &[8]] {
        let mut tensors = pair(stem, ".lora_down.weight", ".lora_up.weight");
        tensors.insert(format!("{stem}.dora_scale"), wave(shape, 2.0));
        let loaded = read(&tensors).unwrap().adapter;
        let magnitude = loaded.iter().next().unwrap().1.get("magnitude").unwrap();
        assert_eq!(values(magnitude), values(&wave(&[8], 2.0)), "{shape:?}");
    }
}

#[test]
fn magnitudes_without_their_factors_are_refused_with_their_key() {
    for missing in ["lora_down", "lora_up"] {
        let mut tensors = kohya_dora("attn1.to_q");
        tensors.retain(|name, _| !name.contains(missing));
        let error = read(&tensors).unwrap_err();
        assert!(matches!(error, Error::IncompleteModules { .. }), "{error}");
        assert!(error.to_string().contains("attn1_to_q.dora_scale`"), "{error}");
    }
}

#[test]
fn magnitudes_of_another_size_are_refused_with_the_shapes() {
    let mut tensors = kohya_dora("attn1.to_q");
    let name = tensors.keys().find(|name| name.ends_with("dora_scale")).unwrap().clone();
    tensors.insert(name.clone(), wave(&[7, 1], 0.0));
    let error = read(&tensors).unwrap_err();
    assert!(error.to_string().contains("attn1.to_q`: expected magnitude [8], found [7, 1]"), "{error}");
    tensors.insert(name, wave(&[1, 8], 0.0));
    let hint = read(&tensors).unwrap_err().hint().unwrap();
    assert!(hint.contains("for each input"), "{hint}");
}

#[test]
fn magnitudes_that_are_not_finite_are_named() {
    let mut tensors = kohya_dora("attn1.to_q");
    let name = tensors.keys().find(|name| name.ends_with("dora_scale")).unwrap().clone();
    tensors.insert(name.clone(), (wave(&[8, 1], 0.0) / 0.0).unwrap());
    let error = read(&tensors).unwrap_err();
    assert!(matches!(&error, Error::NotFinite { tensors, .. } if *tensors == [name]), "{error}");
}

/// A DoRA of every module of the base.
fn dora() -> Adapter {
    let decomposed = |(path, update): (&str, &LayerUpdate)| {
        let out = update.weight_shape()[0];
        (path.to_owned(), DoraFactors::new(update.low_rank().clone(), wave(&[out], 5.0)).unwrap())
    };
    adapter().iter().map(decomposed).collect()
}

#[test]
fn dora_files_say_what_they_hold() {
    let folder = tempdir().unwrap();
    for format in [Format::Kohya, Format::Diffusers, Format::Peft] {
        let path = folder.path().join(format!("{format}.safetensors"));
        file::write(&path, &dora(), format, &Metadata::default()).unwrap();
        let header = header_of(&path);
        assert_eq!(header["catelier.kind"], "dora", "{format}");
        assert_eq!(header["ss_network_module"], "lycoris.kohya", "{format}");
        assert!(header["ss_network_args"].contains("\"dora_wd\":\"True\""), "{}", header["ss_network_args"]);
        let inspection = file::inspect(&path).unwrap();
        assert_eq!(inspection.kinds, BTreeMap::from([(AdapterKind::Dora, base().len())]), "{format}");
        assert_eq!(inspection.element_count, dora().element_count(), "{format}");
        assert!(inspection.remarks.is_empty(), "{:?}", inspection.remarks);
    }
    let config = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    assert!(config.contains("\"use_dora\": true"), "{config}");
}

#[test]
fn dora_survives_conversion_to_every_format() {
    let folder = tempdir().unwrap();
    let mut from = folder.path().join("first.safetensors");
    file::write(&from, &dora(), Format::Kohya, &Metadata::default()).unwrap();
    for format in [Format::Diffusers, Format::Peft, Format::Kohya] {
        let to = folder.path().join(format!("{format}.safetensors"));
        assert!(file::convert(&from, &to, format, &base()).unwrap().is_complete());
        let loaded = file::read(&to, &base()).unwrap();
        assert_same_adapter(&loaded.adapter, &dora());
        assert_eq!(loaded.format, format);
        from = to;
    }
}

#[test]
fn adapters_of_two_kinds_have_a_file_in_one_format() {
    let mut mixed = dora();
    let path = format!("unet.{BLOCK}.attn1.to_q");
    mixed.insert(path.clone(), adapter().get(&path).unwrap().clone());
    let folder = tempdir().unwrap();
    let file = folder.path().join("mixed.safetensors");
    file::write(&file, &mixed, Format::Kohya, &Metadata::default()).unwrap();
    assert_same_adapter(&file::read(&file, &base()).unwrap().adapter, &mixed);
    for format in [Format::Diffusers, Format::Peft] {
        let error = file::write(&file, &mixed, format, &Metadata::default()).unwrap_err();
        assert!(matches!(error, Error::SeveralKinds { .. }), "{error}");
        assert!(error.to_string().contains("`DoRA`, `LoRA`"), "{error}");
    }
}

#[test]
fn two_spellings_of_one_module_are_refused() {
    let mut tensors = kohya_pair("attn1.to_q");
    tensors.extend(pair(&format!("unet.{BLOCK}.attn1.to_q"), ".lora.down.weight", ".lora.up.weight"));
    let error = read(&tensors).unwrap_err();
    assert!(matches!(error, Error::DuplicateModules { .. }), "{error}");
}

#[test]
fn two_spellings_of_one_tensor_are_refused() {
    let mut tensors = pair(&format!("unet.{BLOCK}.attn1.to_q"), ".lora.down.weight", ".lora.up.weight");
    tensors.insert(format!("unet.{BLOCK}.attn1.to_q.lora_A.weight"), wave(&[2, 8], 0.7));
    let error = read(&tensors).unwrap_err();
    assert!(matches!(error, Error::UnmatchedKeys { .. }), "{error}");
}

#[test]
fn values_that_are_not_finite_are_named() {
    for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut tensors = kohya_pair("attn1.to_q");
        let name = tensors.keys().next().unwrap().clone();
        let poisoned = (tensors[&name].zeros_like().unwrap() + f64::from(poison)).unwrap();
        tensors.insert(name.clone(), poisoned);
        let error = read(&tensors).unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }), "{error}");
        assert!(error.to_string().contains(&name), "{error}");
    }
}

#[test]
fn other_kinds_of_adapter_are_refused_by_name() {
    let stem = "lora_unet_mid_block_attentions_0_proj_in";
    for (end, name) in [
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("oft_blocks", "OFT"),
        ("magnitude", "DoRA"),
        ("lora_mid.weight", "three-factor"),
    ] {
        let mut tensors = kohya_pair("attn1.to_q");
        tensors.insert(format!("{stem}.{end}"), wave(&[2, 2], 0.1));
        let error = read(&tensors).unwrap_err();
        assert!(error.to_string().contains(&format!("is a {name}")), "{error}");
        assert!(error.to_string().contains("cannot be applied"), "{error}");
    }
}

#[test]
fn a_whole_model_is_not_an_adapter() {
    let tensors = [("unet.conv_in.weight".to_owned(), wave(&[2, 2], 0.0))];
    let error = read(&tensors.into_iter().collect()).unwrap_err();
    assert!(matches!(error, Error::NotAnAdapter { tensors: 1, .. }), "{error}");
}

#[test]
fn damaged_and_foreign_files_are_typed_errors() {
    let folder = tempdir().unwrap();
    let good = folder.path().join("good.safetensors");
    file::write(&good, &adapter(), Format::Kohya, &Metadata::default()).unwrap();
    let bytes = std::fs::read(&good).unwrap();
    let damaged: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("truncated", bytes[..bytes.len() - 7].to_vec()),
        ("header only", bytes[..20].to_vec()),
        ("pickle", b"PK\x03\x04archive/data.pkl".to_vec()),
        ("huge header", u64::MAX.to_le_bytes().to_vec()),
    ];
    for (what, bytes) in damaged {
        let path = folder.path().join("bad.safetensors");
        std::fs::write(&path, bytes).unwrap();
        for error in [file::read(&path, &base()).unwrap_err(), file::inspect(&path).unwrap_err()] {
            assert!(matches!(error, Error::Numerics { .. }), "{what}: {error}");
        }
    }
    let absent = file::read(&folder.path().join("absent.safetensors"), &base());
    assert!(matches!(absent, Err(Error::Numerics { .. })));
    assert!(matches!(file::read(folder.path(), &base()), Err(Error::EmptyFolder { .. })));
}

#[test]
fn a_peft_folder_holds_configuration_and_tensors() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("peft");
    file::write(&path, &adapter(), Format::Peft, &Metadata::default()).unwrap();
    let text = std::fs::read_to_string(path.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&config["peft_type"], &config["r"], &config["lora_alpha"]), (&json!("LORA"), &json!(2), &json!(3)));
    for path in [path.clone(), path.join("adapter_model.safetensors")] {
        assert_same_adapter(&file::read(&path, &base()).unwrap().adapter, &adapter());
    }
}

#[test]
fn a_peft_configuration_goes_before_the_header() {
    let folder = tempdir().unwrap();
    file::write(folder.path(), &adapter(), Format::Peft, &Metadata::default()).unwrap();
    let config = r#"{"peft_type": "LORA", "lora_alpha": 7, "alpha_pattern": {"attn1.to_q": 5}, "use_rslora": true}"#;
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    let loaded = file::read(folder.path(), &base()).unwrap().adapter;
    let scale = |name: &str| loaded.get(&format!("unet.{BLOCK}.{name}")).unwrap().scale();
    assert!((scale("attn1.to_q") - 5.0 / 2f64.sqrt()).abs() < 1e-9);
    assert!((scale("attn1.to_k") - 7.0 / 2f64.sqrt()).abs() < 1e-9);
}

#[test]
fn a_peft_configuration_of_another_kind_is_refused() {
    let folder = tempdir().unwrap();
    file::write(folder.path(), &adapter(), Format::Peft, &Metadata::default()).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), r#"{"peft_type": "LOHA"}"#).unwrap();
    let error = file::read(folder.path(), &base()).unwrap_err();
    assert!(matches!(error, Error::UnsupportedKind { .. }), "{error}");
}

#[test]
fn a_peft_configuration_of_dora_is_refused_where_magnitudes_are_missing() {
    let folder = tempdir().unwrap();
    file::write(folder.path(), &adapter(), Format::Peft, &Metadata::default()).unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), r#"{"use_dora": true}"#).unwrap();
    let error = file::read(folder.path(), &base()).unwrap_err();
    assert!(matches!(&error, Error::IncompleteModules { modules, .. } if modules.len() == base().len()), "{error}");
    assert!(error.to_string().contains("no magnitude beside `base_model.model.mid_block"), "{error}");
}

#[test]
fn mixed_ranks_and_alphas_survive_every_format() {
    let mut mixed = adapter();
    let path = format!("unet.{BLOCK}.attn1.to_q");
    let factors = LoraFactors::new(wave(&[5, 8], 0.3), wave(&[8, 5], 0.9), 2.5).unwrap();
    mixed.insert(path, factors);
    let folder = tempdir().unwrap();
    for format in [Format::Kohya, Format::Diffusers, Format::Peft] {
        let path = folder.path().join(format!("{format}.safetensors"));
        file::write(&path, &mixed, format, &Metadata::default()).unwrap();
        assert_same_adapter(&file::read(&path, &base()).unwrap().adapter, &mixed);
        let inspection = file::inspect(&path).unwrap();
        assert_eq!(inspection.ranks, BTreeMap::from([(2, base().len() - 1), (5, 1)]), "{format}");
        assert_eq!(inspection.alphas["2.5"], 1, "{format}");
    }
}

/// diffusers takes the format of the first name in a file and loses tensors in another format.
#[test]
fn a_diffusers_file_spells_attentions_and_convolutions_alike() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    file::write(&path, &adapter(), Format::Diffusers, &Metadata::default()).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let alike = |name: &str| name.ends_with(".lora.down.weight") || name.ends_with(".lora.up.weight");
    assert!(file.names().all(alike), "{:?}", file.names().collect::<Vec<_>>());
    assert_eq!(file.names().len(), 2 * base().len());
}

#[test]
fn conversion_keeps_factors_and_story() {
    let folder = tempdir().unwrap();
    let (from, to) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    file::write(&from, &adapter(), Format::Diffusers, &story()).unwrap();
    let report = file::convert(&from, &to, Format::Kohya, &base()).unwrap();
    assert!(report.is_complete());
    let loaded = file::read(&to, &base()).unwrap();
    assert_same_adapter(&loaded.adapter, &adapter());
    assert_eq!(loaded.metadata.trigger.as_deref(), Some("inkwash"));
    assert_eq!(loaded.format, Format::Kohya);
}

/// Metadata with something in every field, some of it private.
fn story() -> Metadata {
    Metadata {
        title: Some("Ink wash".to_owned()),
        description: Some("grey washes".to_owned()),
        author: Some("Jo".to_owned()),
        license: Some("CC-BY-4.0".to_owned()),
        date: Some("2026-01-02".to_owned()),
        trigger: Some("inkwash".to_owned()),
        base: TrainedOn {
            family: Some(BaseFamily::Sd1),
            prediction: Some(Prediction::Epsilon),
            resolution: Some((512, 768)),
            name: Some("/home/jo/models/sd15".to_owned()),
            fingerprint: Some("abc123".to_owned()),
        },
        settings: Some(json!({"rank": 2, "images": "/home/jo/art", "loss": "cat"})),
        other: [("ss_dataset_dirs", "/home/jo/art"), ("ss_steps", "900"), ("ss_tag_frequency", "{}")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        disclosure: Disclosure::Minimal,
    }
}

fn header_of(path: &Path) -> BTreeMap<String, String> {
    TensorFile::open(path).unwrap().metadata().clone()
}

fn header_at(disclosure: Disclosure) -> BTreeMap<String, String> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    file::write(&path, &adapter(), Format::Kohya, &Metadata { disclosure, ..story() }).unwrap();
    header_of(&path)
}

#[test]
fn the_header_speaks_the_words_of_other_tools() {
    let header = header_at(Disclosure::Minimal);
    for (name, value) in [
        ("ss_network_module", "networks.lora"),
        ("ss_network_dim", "2"),
        ("ss_network_alpha", "3.0"),
        ("ss_network_args", "{}"),
        ("ss_base_model_version", "sd_v1"),
        ("ss_v2", "False"),
        ("ss_steps", "900"),
        ("modelspec.sai_model_spec", "1.0.1"),
        ("modelspec.architecture", "stable-diffusion-v1/lora"),
        ("modelspec.implementation", "diffusers"),
        ("modelspec.title", "Ink wash"),
        ("modelspec.resolution", "512x768"),
        ("modelspec.prediction_type", "epsilon"),
        ("modelspec.trigger_phrase", "inkwash"),
        ("modelspec.date", "2026-01-02"),
        ("modelspec.license", "CC-BY-4.0"),
        ("catelier.format_version", "1"),
        ("catelier.base_fingerprint", "abc123"),
        ("catelier.trigger", "inkwash"),
    ] {
        assert_eq!(header.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(header["modelspec.hash_sha256"], format!("0x{}", header["sshs_model_hash"]));
    assert_eq!(header["sshs_legacy_hash"].len(), 8);
}

#[test]
fn no_local_path_is_told_unless_asked() {
    for disclosure in [Disclosure::None, Disclosure::Minimal] {
        let header = header_at(disclosure);
        let told: Vec<_> = header.values().filter(|value| value.contains("/home/jo")).collect();
        assert!(told.is_empty(), "{told:?}");
        assert!(!header.contains_key("ss_tag_frequency"));
    }
    let header = header_at(Disclosure::Full);
    assert_eq!(header["catelier.base_name"], "/home/jo/models/sd15");
    assert_eq!(header["ss_dataset_dirs"], "/home/jo/art");
    assert!(header["catelier.settings"].contains("/home/jo/art"));
}

#[test]
fn without_disclosure_only_what_loaders_need_is_told() {
    let header = header_at(Disclosure::None);
    assert!(header.keys().all(|name| name.starts_with("ss_") || name.starts_with("sshs_")), "{header:?}");
    assert!(!header.values().any(|value| value.contains("inkwash")));
}

#[test]
fn the_model_hash_does_not_depend_on_the_header() {
    let [none, full] = [Disclosure::None, Disclosure::Full].map(header_at);
    assert_eq!(none["sshs_model_hash"], full["sshs_model_hash"]);
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    file::write(&path, &adapter(), Format::Kohya, &story()).unwrap();
    let inspection = file::inspect(&path).unwrap();
    assert_eq!(inspection.model_hash, none["sshs_model_hash"]);
    assert!(inspection.remarks.is_empty(), "{:?}", inspection.remarks);
}

/// The file of [`story`], changed byte by byte.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<file::LoadedAdapter, Error> {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    file::write(&path, &adapter(), Format::Kohya, &story()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    file::read(&path, &base())
}

fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let place = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[place..place + from.len()].copy_from_slice(to);
}

#[test]
fn a_damaged_file_of_ours_is_refused_and_an_edited_header_is_told() {
    assert_eq!(changed(|_| {}).unwrap().integrity, Integrity::Holds);
    let flipped = changed(|bytes| *bytes.last_mut().unwrap() ^= 1).unwrap_err();
    assert!(matches!(flipped, Error::Damaged { .. }) && flipped.hint().is_some(), "{flipped}");
    let edited = changed(|bytes| replace(bytes, b"CC-BY-4.0", b"CC-BY-3.0")).unwrap();
    assert_eq!(edited.integrity, Integrity::HeaderChanged);
}

#[test]
fn a_file_of_others_whose_hash_does_not_hold_is_read_and_told() {
    let read = |change: fn(&mut Vec<u8>)| {
        changed(|bytes| {
            replace(bytes, b"catelier.sha256", b"somebody.sha256");
            change(bytes);
        })
        .unwrap()
        .integrity
    };
    assert_eq!(read(|_| {}), Integrity::Holds);
    assert_eq!(read(|bytes| *bytes.last_mut().unwrap() ^= 1), Integrity::TensorsChanged);
    assert_eq!(read(|bytes| replace(bytes, b"sshs_model_hash", b"ssss_model_hash")), Integrity::Unknown);
    assert!(Integrity::TensorsChanged.remark().unwrap().contains("hash"));
}

#[test]
fn a_story_is_read_back() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let told = Metadata { disclosure: Disclosure::Full, ..story() };
    file::write(&path, &adapter(), Format::Kohya, &told).unwrap();
    let read = file::read(&path, &base()).unwrap().metadata;
    assert_eq!(Metadata { disclosure: Disclosure::Full, ..read }, told);
}

#[test]
fn inspection_tells_the_family_by_the_context_width() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    file::write(&path, &adapter(), Format::Diffusers, &Metadata::default()).unwrap();
    let inspection = file::inspect(&path).unwrap();
    assert_eq!(inspection.family, Some(BaseFamily::Sd1));
    assert_eq!(inspection.dtypes.iter().collect::<Vec<_>>(), ["f32"]);
    assert_eq!(inspection.file, "a.safetensors");
}

#[test]
fn an_adapter_without_modules_has_no_file() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let error = file::write(&path, &Adapter::new(), Format::Kohya, &Metadata::default()).unwrap_err();
    assert!(matches!(error, Error::NothingToWrite));
    assert!(!path.exists());
}

#[test]
fn modules_of_unknown_components_cannot_be_written() {
    let mut stray = adapter();
    stray.insert("vae.conv_in", LoraFactors::new(wave(&[1, 2], 0.0), wave(&[2, 1], 0.0), 1.0).unwrap());
    let path = tempdir().unwrap().path().join("a.safetensors");
    let error = file::write(&path, &stray, Format::Kohya, &Metadata::default()).unwrap_err();
    assert!(error.to_string().contains("`vae.conv_in`"), "{error}");
}
