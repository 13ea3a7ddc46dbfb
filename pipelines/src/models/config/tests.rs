use serde_json::{Value, json};

use super::*;
use crate::error::{Error, Result};
use crate::models::files::ModelFiles;

/// A folder with `component/config.json` holding this.
fn folder_with(component: &str, config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(component)).unwrap();
    std::fs::write(folder.path().join(component).join("config.json"), config.to_string()).unwrap();
    folder
}

fn unet(config: &Value) -> Result<UNetConfig> {
    UNetConfig::load(&ModelFiles::folder(folder_with("unet", config).path()))
}

/// The keys a configuration is refused for.
fn refused(result: Result<impl std::fmt::Debug>) -> Vec<String> {
    match result {
        Err(Error::UnsupportedSettings { settings, .. }) => settings.into_iter().map(|setting| setting.key).collect(),
        other => panic!("expected unsupported settings, found {other:?}"),
    }
}

#[test]
fn one_number_serves_all_levels_and_lists_serve_each() {
    let config = unet(&json!({
        "block_out_channels": [32, 64],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": [1, 3],
        "attention_head_dim": 4,
        "cross_attention_dim": 48,
        "transformer_layers_per_block": [1, 2],
        "norm_num_groups": 8,
        "a_key_from_the_future": {"x": 1},
    }))
    .unwrap();
    let levels: Vec<_> = config.levels.iter().map(|l| (l.channels, l.layers, l.heads, l.transformer_layers)).collect();
    assert_eq!(levels, [(32, 1, 4, 1), (64, 3, 4, 2)]);
    assert_eq!(config.levels.iter().map(|level| level.attention).collect::<Vec<_>>(), [false, true]);
    assert_eq!(config.up_attention, [true, false]);
    assert_eq!((config.timestep.width, config.context_width()), (128, 48));
}

#[test]
fn an_empty_file_means_the_defaults_of_diffusers() {
    let config = unet(&json!({})).unwrap();
    let channels: Vec<usize> = config.levels.iter().map(|level| level.channels).collect();
    assert_eq!(channels, [320, 640, 1280, 1280]);
    assert_eq!(config.up_attention, [false, true, true, true]);
}

#[test]
fn every_setting_that_is_not_supported_is_named() {
    let keys = refused(unet(&json!({
        "time_cond_proj_dim": 256,
        "class_embed_type": "timestep",
        "resnet_out_scale_factor": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "attention_head_dim": [5, 10],
        "norm_num_groups": 7,
    })));
    for key in ["time_cond_proj_dim", "class_embed_type", "down_block_types", "attention_head_dim", "norm_num_groups"] {
        assert!(keys.iter().any(|found| found == key), "{key} in {keys:?}");
    }
    assert!(!keys.iter().any(|key| key == "resnet_out_scale_factor"));
}

#[test]
fn a_refusal_says_what_is_supported() {
    let message = unet(&json!({ "addition_embed_type": "image" })).unwrap_err().to_string();
    assert!(message.contains("`addition_embed_type` is `\"image\"` (supported: null or \"text_time\")"), "{message}");
}

#[test]
fn the_added_embedding_needs_its_widths() {
    assert_eq!(refused(unet(&json!({ "addition_embed_type": "text_time" }))), ["addition_embed_type"]);
}

#[test]
fn an_autoencoder_with_other_blocks_is_refused() {
    let config = json!({
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "latents_mean": [0.1, 0.2],
    });
    let folder = folder_with("vae", &config);
    let keys = refused(VaeConfig::load(&ModelFiles::folder(folder.path()), "vae"));
    assert_eq!(keys, ["latents_mean", "down_block_types"]);
}

#[test]
fn a_text_encoder_knows_both_activations_and_no_other() {
    let load = |config: Value| {
        TextEncoderConfig::load(&ModelFiles::folder(folder_with("text_encoder", &config).path()), "text_encoder")
    };
    let config = load(json!({ "hidden_act": "gelu", "hidden_size": 32, "num_attention_heads": 4 })).unwrap();
    assert_eq!(config.hidden_act, Activation::Gelu);
    assert_eq!(refused(load(json!({ "hidden_act": "relu" }))), ["hidden_act"]);
    assert_eq!(refused(load(json!({ "num_attention_heads": 5 }))), ["num_attention_heads"]);
}
