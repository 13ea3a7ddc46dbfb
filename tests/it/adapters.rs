//! Inspection and conversion of adapter files.

use std::path::PathBuf;

use crate::catelier::Studio;

/// A file of the repository's reference tensors.
pub(crate) fn golden(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/golden")).join(path)
}

#[test]
fn inspect_tells_what_is_in_a_file_without_a_model() {
    let studio = Studio::new();
    let file = golden("fixtures/adapter_kohya.safetensors");
    let ran = studio.done(&format!("adapter inspect {} --json", file.display()));
    let told: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(told["format"], "kohya");
    assert_eq!(told["ranks"]["4"], told["modules"].as_array().unwrap().len());
    let ran = studio.done(&format!("adapter inspect {}", file.display()));
    assert!(ran.stdout.starts_with("file         adapter_kohya.safetensors ("), "{}", ran.stdout);
}

#[test]
fn an_adapter_survives_conversion_through_every_format() {
    let studio = Studio::new();
    let base = golden("tiny-sd1");
    let convert = |from: &str, format: &str, to: &str| {
        studio.done(&format!("adapter convert {from} --format {format} --base {} --out {to}", base.display()))
    };
    let start = golden("fixtures/adapter_kohya_wide.safetensors").display().to_string();
    let ran = convert(&start, "diffusers", "a.safetensors");
    assert!(ran.stderr.contains("matched unet "), "{}", ran.stderr);
    convert("a.safetensors", "peft", "b");
    convert("b", "kohya", "c.safetensors");
    assert_eq!(norms(&studio, &start), norms(&studio, "c.safetensors"));
}

/// The norm of every module's update, by the module's name.
fn norms(studio: &Studio, file: &str) -> Vec<(String, String)> {
    let ran = studio.done(&format!("adapter inspect {file} --json"));
    let told: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let modules = told["modules"].as_array().unwrap().iter();
    modules.map(|module| (module["name"].to_string(), format!("{:.5}", module["norm"].as_f64().unwrap()))).collect()
}
