//! A fingerprint of a base model's content that does not depend on the precision of its weights.

use candle_core::DType;
use catelier_adapters::Fingerprint;
use catelier_numerics::hex;
use half::f16;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::BaseConfig;
use super::config::EmptyNegative;
use crate::error::Result;
use crate::models::VAE_LEGACY_NAMES;
use crate::models::files::{ModelFiles, StoredTensor};

/// The components with weights, in the order of hashing.
const NETWORKS: [&str; 4] = ["unet", "text_encoder", "text_encoder_2", "vae"];

/// Number of elements taken from each of three positions of every weight.
const SAMPLE: usize = 256;

/// Bytes of SHA-256 in each part of the fingerprint.
const SHOWN: usize = 16;

/// The two hashes of the fingerprint, one of signs and one of values.
///
/// Rounding to nearest keeps the sign bit, also of small values that round to zero, so the signs are the same in every
/// copy. A copy in f16 holds the f32 values rounded to f16, so values rounded to f16 are the same in both. A copy in
/// bf16 cannot give them: rounding to bf16 and then to f16 is not the same as rounding to f16.
struct Parts {
    signs: Sha256,
    values: Sha256,
    /// Whether all weights have the precision that `values` needs.
    has_values: bool,
}

/// The fingerprint of the model in `files` with this configuration.
pub(super) fn of(config: &BaseConfig, files: &ModelFiles) -> Result<String> {
    let mut parts = Parts { signs: Sha256::new(), values: Sha256::new(), has_values: true };
    add(&mut parts.signs, described(config).as_bytes());
    if let Some(seed) = files.random_seed() {
        add(&mut parts.signs, format!("random weights from seed {seed}").as_bytes());
    }
    for network in NETWORKS.iter().filter(|network| files.exists(&format!("{network}/config.json"))) {
        let mut tensors: Vec<(String, StoredTensor)> = files
            .stored_tensors(network)?
            .into_iter()
            .map(|tensor| (canonical(network, &tensor.name), tensor))
            .collect();
        tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
        tensors.iter().try_for_each(|(name, tensor)| parts.add_tensor(name, tensor))?;
    }
    Ok(parts.finish())
}

/// The settings that change a prediction, as JSON with defaults filled in: a file that another version of its library
/// saved again may spell out more keys.
fn described(config: &BaseConfig) -> String {
    let scheduler = &config.scheduler;
    let text_encoders: Vec<_> = config.text_encoders.values().collect();
    json!({
        "unet": config.unet,
        "vae": config.vae,
        "text_encoders": text_encoders,
        "prediction": scheduler.prediction_type,
        "timesteps": scheduler.num_train_timesteps,
        "betas": [scheduler.beta_start, scheduler.beta_end],
        "beta_schedule": scheduler.beta_schedule,
        "trained_betas": scheduler.trained_betas,
        "zero_snr": scheduler.rescale_betas_zero_snr,
        "zeros_for_empty_prompt": config.empty_negative == EmptyNegative::Zeros,
    })
    .to_string()
}

/// The name of a tensor, `network/name`, in the spelling of newer files.
fn canonical(network: &str, name: &str) -> String {
    let mut name = name.strip_prefix("text_model.").unwrap_or(name).to_owned();
    if network == "vae" {
        for (new, old) in VAE_LEGACY_NAMES {
            name = name.replace(old, new);
        }
    }
    format!("{network}/{name}")
}

impl Parts {
    /// Adds name, shape and samples of a weight. Tables that are no weights, such as position ids, are left out.
    fn add_tensor(&mut self, name: &str, tensor: &StoredTensor) -> Result<()> {
        if !matches!(tensor.dtype, Some(DType::F64 | DType::F32 | DType::F16 | DType::BF16)) {
            return Ok(());
        }
        let sampled = sampled(tensor)?;
        add(&mut self.signs, format!("{name} {:?}", tensor.shape).as_bytes());
        add(&mut self.signs, &sampled.iter().map(|value| u8::from(value.is_sign_negative())).collect::<Vec<u8>>());
        let rounded = sampled.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes());
        add(&mut self.values, &rounded.collect::<Vec<u8>>());
        self.has_values &= tensor.dtype != Some(DType::BF16);
        Ok(())
    }

    fn finish(self) -> String {
        let [signs, values] = [self.signs, self.values].map(|hash| hex::encode(&hash.finalize()[..SHOWN]));
        Fingerprint::V2 { signs: &signs, values: self.has_values.then_some(&values) }.to_string()
    }
}

/// Elements from the beginning, the middle and the end; small tensors give some of them more than once.
fn sampled(tensor: &StoredTensor) -> Result<Vec<f32>> {
    let count = tensor.element_count();
    let sample = SAMPLE.min(count);
    let mut values = Vec::with_capacity(3 * sample);
    for start in [0, (count - sample) / 2, count - sample] {
        values.extend(tensor.values(start..start + sample)?);
    }
    Ok(values)
}

/// Adds `bytes` after their length, so that different sequences of parts never give the same input to the hash.
fn add(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
