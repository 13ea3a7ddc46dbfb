//! Commands that need only the names and shapes of a base accept a folder without weights.

use crate::adapters::golden;
use crate::catelier::Studio;
use crate::train::studio;

/// The configuration files of a reference model, as the folder `base`.
fn without_weights(studio: &Studio, model: &str) {
    let from = golden(model);
    let mut files = vec!["model_index.json".to_string(), "scheduler/scheduler_config.json".to_string()];
    files.extend(["unet", "vae", "text_encoder", "text_encoder_2"].map(|part| format!("{part}/config.json")));
    for file in files.iter().filter(|file| from.join(file).exists()) {
        studio.write(&format!("base/{file}"), std::fs::read(from.join(file)).unwrap());
    }
}

#[test]
fn inspect_describes_a_base_with_weights_and_without() {
    let studio = Studio::new();
    without_weights(&studio, "tiny-sdxl");
    let inspect = |base: &str| -> serde_json::Value {
        serde_json::from_str(&studio.done(&format!("base inspect {base} --json")).stdout).unwrap()
    };
    let (mut whole, bare) = (inspect(&golden("tiny-sdxl").display().to_string()), inspect("base"));
    assert!(whole["fingerprint"].as_str().unwrap().starts_with("v2-"), "{whole}");
    assert_eq!((&whole["family"], &whole["prediction"]), (&"sdxl".into(), &"epsilon".into()));
    assert!(whole["parameters"]["text_encoder_2"].as_u64().unwrap() > 0, "{whole}");
    for key in ["fingerprint", "name"] {
        whole[key] = bare[key].clone();
    }
    assert_eq!(whole, bare);
    let told = studio.done("base inspect base").stdout;
    assert!(told.contains("fingerprint  none: there are no weights"), "{told}");
}

#[test]
fn adapters_are_converted_and_averaged_for_a_base_without_weights() {
    let studio = Studio::new();
    without_weights(&studio, "tiny-sd1");
    let file = golden("fixtures/adapter_kohya.safetensors");
    for format in ["diffusers", "kohya"] {
        for (base, out) in [("base".to_string(), "bare"), (golden("tiny-sd1").display().to_string(), "whole")] {
            let line =
                format!("adapter convert {} --format {format} --base {base} --out {out} --force", file.display());
            studio.done(&line);
        }
        assert!(std::fs::read(studio.path("bare")).unwrap() == std::fs::read(studio.path("whole")).unwrap());
    }
    studio.done("federate aggregate --adapter bare --adapter whole:2 --base base --out mean.safetensors");
}

#[test]
fn a_run_is_planned_for_a_base_without_weights() {
    let studio = studio();
    without_weights(&studio, "tiny-sd2");
    let plan = |base: &str| -> serde_json::Value {
        let line = format!("plan --images art --trigger shs --base {base} --json --memory-limit 8GB");
        serde_json::from_str(&studio.done(&line).stdout).unwrap()
    };
    let (whole, bare) = (plan(&golden("tiny-sd2").display().to_string()), plan("base"));
    assert_eq!((&whole["memory"], &whole["gflop_per_step"]), (&bare["memory"], &bare["gflop_per_step"]));
}
