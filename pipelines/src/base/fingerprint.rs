//! A short name for the content of a base model.

use candle_core::{DType, Device};
use safetensors::tensor::TensorView;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::files::ModelFiles;

/// Components with weights, in the order they are hashed.
const NETWORKS: [&str; 4] = ["unet", "text_encoder", "text_encoder_2", "vae"];

/// Bytes taken from each of three places of every tensor.
const SAMPLE: usize = 64;

/// The fingerprint of the model in `files`: 64 hexadecimal digits.
pub(super) fn of(files: &ModelFiles) -> Result<String> {
    let mut hash = Sha256::new();
    let scheduler = std::iter::once("scheduler/scheduler_config.json".to_owned());
    for path in NETWORKS.map(|network| format!("{network}/config.json")).into_iter().chain(scheduler) {
        if files.exists(&path) {
            part(&mut hash, path.as_bytes());
            part(&mut hash, canonical(&files.json(&path)?).as_bytes());
        }
    }
    for network in NETWORKS {
        if files.exists(&format!("{network}/config.json")) {
            part(&mut hash, network.as_bytes());
            files.weights(network, DType::F32, &Device::Cpu)?.visit(|name, view| tensor(&mut hash, name, view));
        }
    }
    if let Some(seed) = files.random_seed() {
        part(&mut hash, format!("random weights from seed {seed}").as_bytes());
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Adds `bytes` with their length, so that no two sequences of parts run together.
fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn tensor(hash: &mut Sha256, name: &str, view: &TensorView<'_>) {
    part(hash, name.as_bytes());
    part(hash, format!("{:?} {:?}", view.dtype(), view.shape()).as_bytes());
    let bytes = view.data();
    let sample = SAMPLE.min(bytes.len());
    for start in [0, (bytes.len() - sample) / 2, bytes.len() - sample] {
        part(hash, &bytes[start..start + sample]);
    }
}

/// A configuration without what its writer notes about itself, keys in order.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().filter(|(key, _)| !key.starts_with('_')).collect();
            entries.sort_by_key(|(key, _)| *key);
            let entries: Vec<String> =
                entries.iter().map(|(key, value)| format!("{key:?}:{}", canonical(value))).collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(canonical).collect();
            format!("[{}]", values.join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_compare_without_order_and_private_keys() {
        let one: Value = serde_json::from_str(r#"{"b": [1, {"d": 2, "c": 3}], "a": null}"#).unwrap();
        let other: Value = serde_json::from_str(r#"{"_version": 7, "a": null, "b": [1, {"c": 3, "d": 2}]}"#).unwrap();
        assert_eq!(canonical(&one), canonical(&other));
        let changed: Value = serde_json::from_str(r#"{"a": null, "b": [{"c": 3, "d": 2}, 1]}"#).unwrap();
        assert_ne!(canonical(&one), canonical(&changed));
    }
}
