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

/// Shapes agree between versions of the embedded base, and nothing else does.
#[test]
fn an_adapter_of_another_version_of_the_embedded_base_is_refused() {
    let studio = crate::train::studio();
    studio.done(&format!("{} --out run", crate::train::EMBEDDED));
    let of = |name| [("catelier.base_fingerprint", "v2-0123-4567"), ("catelier.base_name", name)];
    studio.with_header("run/adapter.safetensors", "old.safetensors", &of("embedded"));
    studio.with_header("run/adapter.safetensors", "other.safetensors", &of("a/base"));
    let preview = "preview --prompt house --steps 1 --out seen --adapter";
    for line in [preview.to_owned(), "evaluate --seeds 1 --steps 1 --out seen --adapter".to_owned()] {
        let ran = studio.run(&format!("{line} old.safetensors"));
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert_eq!(
            ran.message(),
            "error: `old.safetensors` was trained on another version of the embedded base, whose fingerprint its header holds\nhint: use it with the version of catelier that trained it, or train it anew"
        );
    }
    assert!(!studio.path("seen").exists());
    let ran = studio.done(&format!("{preview} other.safetensors"));
    assert!(
        ran.stderr.contains("warning: `other.safetensors` was trained on `a/base`, which is not `embedded`"),
        "{}",
        ran.stderr
    );
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
