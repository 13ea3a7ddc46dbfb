//! The adapter files of the golden folder, written by diffusers and PEFT, load with the values that these tools had.

use std::collections::BTreeSet;
use std::path::PathBuf;

use candle_core::{DType, Device};
use catelier_adapters::file::{self, Format, LoadedAdapter, Metadata};
use catelier_adapters::{Adapter, AdapterKind, Component, DoraFactors, Error, LoraFactors, ModuleInfo, UpdateKind};
use catelier_numerics::tensor_file::TensorFile;
use catelier_testkit::golden::Golden;
use tempfile::tempdir;

use crate::base::{assert_same_adapter, assert_same_update, modules, values};

/// The files for tiny-sd1, and for tiny-sdxl.
const SD1: [&str; 8] = [
    "kohya",
    "kohya_fp16",
    "kohya_wide",
    "kohya_dora",
    "diffusers",
    "diffusers_dora",
    "diffusers_no_alpha",
    "peft_keys",
];
const SDXL: [&str; 2] = ["kohya_sdxl", "diffusers_sdxl"];

fn path(name: &str) -> PathBuf {
    Golden::open().file(&format!("adapter_{name}.safetensors"))
}

fn base(name: &str) -> Vec<ModuleInfo> {
    let model = if name.ends_with("_sdxl") { "tiny-sdxl" } else { "tiny-sd1" };
    modules(&Golden::open().model(model), "unet")
}

fn load(name: &str) -> LoadedAdapter {
    file::read(&path(name), &base(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The weights that PEFT trained, renamed to our paths, with the alpha of the fixture.
fn trained(topic: &str, component: Component) -> Adapter {
    let golden = Golden::open();
    let fixture = golden.fixture(topic);
    let alpha = golden.fixture("lora_sd1").facts()["alpha"].as_f64().unwrap();
    let downs = fixture.under("weight.").into_iter();
    downs
        .filter_map(|(name, down)| {
            let module = name.strip_suffix(".lora_A.weight")?;
            let up = fixture.tensor(&format!("weight.{module}.lora_B.weight"));
            Some((component.path(module), LoraFactors::new(down, up, alpha).unwrap()))
        })
        .collect()
}

fn unet_part(adapter: &Adapter) -> Adapter {
    let own = adapter.iter().filter(|(path, _)| path.starts_with("unet."));
    own.map(|(path, update)| (path.to_owned(), update.clone())).collect()
}

fn text_part(adapter: &Adapter) -> Adapter {
    let own = adapter.iter().filter(|(path, _)| path.starts_with("text_encoder."));
    own.map(|(path, update)| (path.to_owned(), update.clone())).collect()
}

#[test]
fn golden_sd1_files_hold_the_trained_weights() {
    let expected = trained("lora_sd1", Component::Unet);
    for (name, format) in [("kohya", Format::Kohya), ("diffusers", Format::Diffusers), ("peft_keys", Format::Peft)] {
        let loaded = load(name);
        assert_eq!(loaded.format, format, "{name}");
        assert_same_adapter(&unet_part(&loaded.adapter), &expected);
        let counts = loaded.report.components[&Component::Unet];
        assert_eq!((counts.matched, counts.total), (expected.len(), expected.len()), "{name}");
        assert!(counts.compared);
    }
}

#[test]
fn golden_text_encoder_keys_are_a_component_of_their_own() {
    let expected = trained("lora_text_sd1", Component::TextEncoder);
    for name in ["kohya", "diffusers"] {
        let loaded = load(name);
        assert_same_adapter(&text_part(&loaded.adapter), &expected);
        let counts = loaded.report.components[&Component::TextEncoder];
        assert_eq!((counts.matched, counts.total), (expected.len(), expected.len()), "{name}");
        assert!(!counts.compared, "the base listed no text encoder modules");
    }
}

#[test]
fn golden_text_encoder_keys_are_compared_where_the_base_lists_them() {
    let mut base = base("kohya");
    base.extend(modules(&Golden::open().model("tiny-sd1"), "text_encoder"));
    let loaded = file::read(&path("kohya"), &base).unwrap();
    assert!(loaded.report.components[&Component::TextEncoder].compared);
    assert_same_adapter(&loaded.adapter, &load("kohya").adapter);
}

#[test]
fn golden_half_precision_file_holds_the_rounded_weights() {
    let (loaded, expected) = (load("kohya_fp16").adapter, load("kohya").adapter);
    assert_eq!(loaded.len(), expected.len());
    for ((path, half), (_, full)) in loaded.iter().zip(expected.iter()) {
        let rounded = full.to(&Device::Cpu, DType::F16).unwrap();
        assert_same_update(path, half, &rounded);
        assert_ne!(values(&half.low_rank().down), values(&full.low_rank().down), "{path}");
    }
}

#[test]
fn golden_file_without_alpha_has_the_rank_for_alpha() {
    let (silent, told) = (load("diffusers_no_alpha").adapter, unet_part(&load("diffusers").adapter));
    assert_eq!(silent.len(), told.len());
    for ((path, silent), (_, told)) in silent.iter().zip(told.iter()) {
        assert_eq!(values(&silent.low_rank().down), values(&told.low_rank().down), "{path}");
        assert!((silent.scale() - 1.0).abs() < 1e-12, "{path}");
        assert!((told.scale() - 1.0).abs() > 0.1, "{path}");
    }
}

#[test]
fn golden_sdxl_files_hold_the_trained_weights() {
    let expected = trained("lora_sdxl", Component::Unet);
    for name in SDXL {
        assert_same_adapter(&load(name).adapter, &expected);
    }
}

#[test]
fn golden_wide_file_fills_convolutions_and_linears_in_their_own_shapes() {
    let loaded = load("kohya_wide");
    let raw = TensorFile::open(path("kohya_wide")).unwrap();
    let alpha: f64 = raw.metadata()["ss_network_alpha"].parse().unwrap();
    let base = base("kohya_wide");
    assert_eq!(3 * loaded.adapter.len(), raw.names().len());
    assert!(loaded.adapter.iter().any(|(_, update)| update.is_convolution()));
    for (path, factors) in loaded.adapter.iter().map(|(path, update)| (path, update.as_lora().unwrap())) {
        let kind = base.iter().find(|module| module.path == path).unwrap().kind;
        assert_eq!(factors.down.dims(), kind.down_shape(factors.rank()));
        assert_eq!(factors.up.dims(), kind.up_shape(factors.rank()));
        assert!((factors.alpha - alpha).abs() < 1e-12);
        let stem = format!("lora_{}", path.replace('.', "_"));
        let stored = |end: &str| raw.tensor(&format!("{stem}.{end}.weight"), factors.down.device()).unwrap();
        assert_eq!(values(&factors.down), values(&stored("lora_down")), "{path}");
        assert_eq!(values(&factors.up), values(&stored("lora_up")), "{path}");
    }
}

#[test]
fn golden_dora_files_hold_the_trained_weights_and_magnitudes() {
    let fixture = Golden::open().fixture("dora_sd1");
    let alpha = fixture.facts()["alpha"].as_f64().unwrap();
    let trained = fixture.under("weight.").into_iter().filter_map(|(name, down)| {
        let module = name.strip_suffix(".lora_A.weight")?;
        let tensor = |end: &str| fixture.tensor(&format!("weight.{module}.{end}"));
        let factors = LoraFactors::new(down, tensor("lora_B.weight"), alpha).unwrap();
        let magnitude = fixture.under(&format!("weight.{module}.lora_magnitude_vector")).remove(0).1;
        Some((Component::Unet.path(module), DoraFactors::new(factors, magnitude).unwrap()))
    });
    let expected: Adapter = trained.collect();
    for (name, format) in [("kohya_dora", Format::Kohya), ("diffusers_dora", Format::Diffusers)] {
        let loaded = load(name);
        assert_same_adapter(&loaded.adapter, &expected);
        assert_eq!(loaded.adapter.uniform_kind(), Some(UpdateKind::Dora), "{name}");
        assert_eq!(loaded.format, format, "{name}");
        let inspection = file::inspect(&path(name)).unwrap();
        assert_eq!(inspection.kinds.keys().collect::<Vec<_>>(), [&AdapterKind::Dora]);
    }
}

#[test]
fn golden_files_survive_all_formats_and_save_the_same_bytes_twice() {
    let folder = tempdir().unwrap();
    for name in SD1.into_iter().chain(SDXL) {
        let loaded = load(name);
        for format in [Format::Kohya, Format::Diffusers, Format::Peft] {
            let (first, second) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
            let written = file::write(&first, &loaded.adapter, format, &loaded.metadata);
            if format == Format::Peft && loaded.adapter.components().len() > 1 {
                assert!(matches!(written, Err(Error::SeveralComponents { .. })), "{name}");
                continue;
            }
            written.unwrap();
            let again = file::read(&first, &base(name)).unwrap_or_else(|error| panic!("{name} {format}: {error}"));
            assert_same_adapter(&again.adapter, &loaded.adapter);
            assert_eq!(again.format, format, "{name}");
            file::write(&second, &again.adapter, format, &again.metadata).unwrap();
            assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap(), "{name} {format}");
        }
    }
}

#[test]
fn golden_names_are_written_as_the_peers_wrote_them() {
    let folder = tempdir().unwrap();
    for name in [
        "kohya",
        "kohya_wide",
        "kohya_dora",
        "diffusers",
        "diffusers_dora",
        "diffusers_no_alpha",
        "kohya_sdxl",
        "diffusers_sdxl",
    ] {
        let loaded = load(name);
        let written = folder.path().join("again.safetensors");
        file::write(&written, &loaded.adapter, loaded.format, &loaded.metadata).unwrap();
        let described = |path: &PathBuf| -> BTreeSet<(String, Vec<usize>)> {
            let file = TensorFile::open(path).unwrap();
            file.names().map(|n| (n.to_owned(), file.shape(n).unwrap().to_vec())).collect()
        };
        assert_eq!(described(&written), described(&path(name)), "{name}");
    }
}

#[test]
fn golden_sdxl_names_are_read_in_both_block_countings() {
    let folder = tempdir().unwrap();
    let loaded = load("kohya_sdxl");
    let path = folder.path().join("legacy.safetensors");
    file::write(&path, &loaded.adapter, Format::Kohya, &Metadata::default()).unwrap();
    let names = TensorFile::open(&path).unwrap();
    assert!(names.names().all(|name| name.contains("_blocks_") || name.contains("mid_block_")));
    assert!(!names.names().any(|name| name.contains("input_blocks")));
    let again = file::read(&path, &base("kohya_sdxl")).unwrap();
    assert_same_adapter(&again.adapter, &loaded.adapter);
}

#[test]
fn golden_files_can_be_inspected_without_a_base() {
    for name in SD1.into_iter().chain(SDXL) {
        let (loaded, inspection) = (load(name), file::inspect(&path(name)).unwrap());
        assert_eq!(inspection.modules.len(), loaded.adapter.len(), "{name}");
        assert_eq!(inspection.components, loaded.adapter.components(), "{name}");
        assert_eq!(inspection.element_count, loaded.adapter.element_count(), "{name}");
        assert!(inspection.remarks.is_empty(), "{name}: {:?}", inspection.remarks);
        let norms: f64 = inspection.modules.iter().map(|module| module.norm.unwrap().powi(2)).sum();
        let expected = loaded.adapter.delta_norm().unwrap();
        assert!((norms.sqrt() - expected).abs() < 1e-6 * expected, "{name}");
        let text = serde_json::to_string(&inspection).unwrap();
        let again: file::Inspection = serde_json::from_str(&text).unwrap();
        assert_eq!(again.modules.len(), inspection.modules.len());
    }
}

#[test]
fn golden_file_of_another_base_is_refused_with_the_shapes() {
    let other = modules(&Golden::open().model("tiny-sd2"), "unet");
    let error = file::read_with(&path("diffusers_no_alpha"), &other, file::UnmatchedKeys::Skip).unwrap_err();
    let Error::WrongShapes { offenders, .. } = &error else { panic!("{error}") };
    assert!(offenders[0].expected != offenders[0].found);
    assert!(error.to_string().contains("expected down") || error.to_string().contains("expected up"), "{error}");
}
