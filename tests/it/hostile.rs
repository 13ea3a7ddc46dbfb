//! Hostile adapter files are refused.

use std::path::Path;

use crate::adapters::golden;
use crate::catelier::Studio;

/// The message of a preview with this adapter file.
fn applying(name: &str, bytes: &[u8]) -> String {
    let studio = Studio::new();
    studio.write(name, bytes);
    answer(&studio, Path::new(name))
}

fn answer(studio: &Studio, adapter: &Path) -> String {
    let line = format!(
        "preview --prompt house --base {} --adapter {} --out out",
        golden("tiny-sd1").display(),
        adapter.display()
    );
    let ran = studio.run(&line);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    ran.message().replace(env!("CARGO_MANIFEST_DIR"), "[REPOSITORY]")
}

/// A safetensors file with this header and `data` bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn an_adapter_for_another_base() {
    let studio = Studio::new();
    assert_eq!(
        answer(&studio, &golden("fixtures/adapter_diffusers_sdxl.safetensors")),
        "error: cannot apply adapter `[REPOSITORY]/golden/fixtures/adapter_diffusers_sdxl.safetensors` to base `tiny-sd1`\ncause: `[REPOSITORY]/golden/fixtures/adapter_diffusers_sdxl.safetensors` has keys without a place in the base model (unet 24/136): `unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.lora.down.weight`, `unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.lora.up.weight`, `unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.down.weight` and 221 more\nhint: the file may be made for another base or by another tool; inspect it, or accept that these keys are left out"
    );
}

#[test]
fn no_safetensors_at_all() {
    assert_eq!(
        applying("a.safetensors", b"hello, I am a text file"),
        "error: cannot apply adapter `a.safetensors` to base `tiny-sd1`\ncause: reading `a.safetensors` failed\ncause: cannot read tensor file `a.safetensors`\ncause: expected safetensors, found something else: byte 8 is 0x20 where `{` opens a header"
    );
}

#[test]
fn an_empty_file() {
    assert_eq!(
        applying("a.safetensors", b""),
        "error: cannot apply adapter `a.safetensors` to base `tiny-sd1`\ncause: reading `a.safetensors` failed\ncause: cannot read tensor file `a.safetensors`\ncause: the file is empty (0 bytes)\nhint: download or copy the file again; it is incomplete"
    );
}

#[test]
fn a_truncated_file() {
    let whole = std::fs::read(golden("fixtures/adapter_kohya.safetensors")).unwrap();
    assert_eq!(
        applying("a.safetensors", &whole[..whole.len() - 100]),
        "error: cannot apply adapter `a.safetensors` to base `tiny-sd1`\ncause: reading `a.safetensors` failed\ncause: cannot read tensor file `a.safetensors`\ncause: the file is cut short: expected 64976 bytes, found 64876\nhint: download or copy the file again; it is incomplete"
    );
}

#[test]
fn overlapping_offsets() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    assert_eq!(
        applying("a.safetensors", &file(header, 12)),
        "error: cannot apply adapter `a.safetensors` to base `tiny-sd1`\ncause: reading `a.safetensors` failed\ncause: cannot read tensor file `a.safetensors`\ncause: tensors `a` and `b` overlap\nhint: no honest program writes such a file; do not trust its source"
    );
}

#[test]
fn an_absurd_shape() {
    let header = r#"{"a":{"dtype":"F32","shape":[1152921504606846976,1152921504606846976],"data_offsets":[0,8]}}"#;
    assert_eq!(
        applying("a.safetensors", &file(header, 8)),
        "error: cannot apply adapter `a.safetensors` to base `tiny-sd1`\ncause: reading `a.safetensors` failed\ncause: cannot read tensor file `a.safetensors`\ncause: tensor `a`: shape [1152921504606846976, 1152921504606846976] has more elements than can be addressed\nhint: no honest program writes such a file; do not trust its source"
    );
}

#[test]
fn values_that_are_not_finite() {
    let mut bytes = std::fs::read(golden("fixtures/adapter_kohya.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(
        applying("a.safetensors", &bytes),
        "error: cannot apply adapter `a.safetensors` to base `tiny-sd1`\ncause: `a.safetensors` has values that are not finite in 1 tensors: `lora_unet_up_blocks_1_attentions_1_transformer_blocks_0_attn2_to_v.lora_up.weight`\nhint: the training that wrote this file diverged; use an earlier state"
    );
}

#[test]
fn a_pickle_checkpoint() {
    assert_eq!(
        applying("a.ckpt", b"PK\x03\x04archive/data.pkl"),
        "error: cannot apply adapter `a.ckpt` to base `tiny-sd1`\ncause: reading `a.ckpt` failed\ncause: cannot read tensor file `a.ckpt`\ncause: expected safetensors, found a PyTorch pickle checkpoint\nhint: convert it to safetensors first, in a place you trust: loading a pickle can run arbitrary code"
    );
}
