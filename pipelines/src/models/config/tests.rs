use serde_json::{Value, json};

use super::check::Table;
use super::text_encoder::TEXT_ENCODER;
use super::unet::UNET;
use super::vae::VAE;
use super::*;
use crate::diffusion::{SCHEDULER, SchedulerConfig};
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
    assert_eq!(keys, ["down_block_types", "latents_mean"]);
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

/// The configurations of well-known models, as published.
const PUBLISHED: [(&str, &Table, &str); 9] = [
    (
        "unet",
        UNET,
        r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
        "cross_attention_dim": 768, "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0,
        "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05,
        "norm_num_groups": 32, "out_channels": 4, "sample_size": 64, "up_block_types": ["UpBlock2D",
        "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#,
    ),
    (
        "unet",
        UNET,
        r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.10.0.dev0", "act_fn": "silu",
        "attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": false, "cross_attention_dim": 1024, "down_block_types": ["CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"], "downsample_padding": 1,
        "dual_cross_attention": false, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4,
        "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
        "num_class_embeds": null, "only_cross_attention": false, "out_channels": 4, "sample_size": 96,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "use_linear_projection": true, "upcast_attention": true}"#,
    ),
    (
        "unet",
        UNET,
        r#"{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
        "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "center_input_sample": false,
        "class_embed_type": null, "class_embeddings_concat": false, "conv_in_kernel": 3, "conv_out_kernel": 3,
        "cross_attention_dim": 2048, "cross_attention_norm": null, "down_block_types": ["DownBlock2D",
        "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1, "dual_cross_attention": false,
        "encoder_hid_dim": null, "encoder_hid_dim_type": null, "flip_sin_to_cos": true, "freq_shift": 0,
        "in_channels": 4, "layers_per_block": 2, "mid_block_only_cross_attention": null, "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-05, "norm_num_groups": 32,
        "num_attention_heads": null, "num_class_embeds": null, "only_cross_attention": false, "out_channels": 4,
        "projection_class_embeddings_input_dim": 2816, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": false,
        "resnet_time_scale_shift": "default", "sample_size": 128, "time_cond_proj_dim": null,
        "time_embedding_act_fn": null, "time_embedding_dim": null, "time_embedding_type": "positional",
        "timestep_post_act": null, "transformer_layers_per_block": [1, 2, 10], "up_block_types":
        ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null,
        "use_linear_projection": true}"#,
    ),
    (
        "vae",
        VAE,
        r#"{"_class_name": "AutoencoderKL", "_diffusers_version": "0.20.0.dev0", "_name_or_path": "../vae/",
        "act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D",
        "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"], "force_upcast": true, "in_channels": 3,
        "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024,
        "scaling_factor": 0.13025, "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D",
        "UpDecoderBlock2D"]}"#,
    ),
    (
        "text_encoder",
        TEXT_ENCODER,
        r#"{"_name_or_path": "openai/clip-vit-large-patch14", "architectures":
        ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
        "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02,
        "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type":
        "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
        "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0", "vocab_size": 49408}"#,
    ),
    (
        "text_encoder",
        TEXT_ENCODER,
        r#"{"architectures": ["CLIPTextModelWithProjection"], "attention_dropout": 0.0,
        "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "gelu", "hidden_size": 1280,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 5120, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 20,
        "num_hidden_layers": 32, "pad_token_id": 1, "projection_dim": 1280, "torch_dtype": "float16",
        "transformers_version": "4.32.0.dev0", "vocab_size": 49408}"#,
    ),
    (
        "scheduler",
        SCHEDULER,
        r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
        "clip_sample": false}"#,
    ),
    (
        "scheduler",
        SCHEDULER,
        r#"{"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false, "num_train_timesteps": 1000,
        "prediction_type": "v_prediction", "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
        "trained_betas": null}"#,
    ),
    (
        "scheduler",
        SCHEDULER,
        r#"{"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0",
        "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false,
        "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
        "sample_max_value": 1.0, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
        "timestep_spacing": "leading", "trained_betas": null, "use_karras_sigmas": false}"#,
    ),
];

#[test]
fn published_configurations_load_and_each_of_their_keys_has_a_rule() {
    for (component, table, text) in PUBLISHED {
        let config: Value = serde_json::from_str(text).unwrap();
        for key in config.as_object().unwrap().keys() {
            assert!(table.iter().any(|(known, _)| known == key), "{component}: {key}");
        }
        let loaded = match component {
            "unet" => unet(&config).map(drop),
            "scheduler" => scheduler(&config).map(drop),
            "vae" => VaeConfig::load(&ModelFiles::folder(folder_with("vae", &config).path()), "vae").map(drop),
            _ => TextEncoderConfig::load(&ModelFiles::folder(folder_with(component, &config).path()), component)
                .map(drop),
        };
        loaded.unwrap();
    }
}

#[test]
fn every_key_has_one_rule() {
    for table in [UNET, VAE, TEXT_ENCODER, SCHEDULER] {
        let keys: Vec<&str> = table.iter().map(|(key, _)| *key).collect();
        let distinct: std::collections::BTreeSet<&str> = keys.iter().copied().collect();
        assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    }
}

fn scheduler(config: &Value) -> Result<SchedulerConfig> {
    let folder = folder_with("scheduler", config);
    let path = folder.path().join("scheduler");
    std::fs::rename(path.join("config.json"), path.join("scheduler_config.json")).unwrap();
    SchedulerConfig::load(&ModelFiles::folder(folder.path()))
}

#[test]
fn keys_of_a_scheduler_that_change_results_are_refused_by_name() {
    for (key, value) in [
        ("clip_sample", json!(true)),
        ("thresholding", json!(true)),
        ("use_exponential_sigmas", json!(true)),
        ("use_beta_sigmas", json!(true)),
        ("use_flow_sigmas", json!(true)),
        ("use_lu_lambdas", json!(true)),
        ("variance_type", json!("fixed_large")),
        ("variance_type", json!("learned_range")),
        ("lower_order_final", json!(false)),
        ("euler_at_final", json!(true)),
        ("solver_order", json!(3)),
        ("solver_type", json!("heun")),
        ("algorithm_type", json!("dpmsolver")),
        ("predict_x0", json!(false)),
        ("disable_corrector", json!([0])),
        ("interpolation_type", json!("log_linear")),
        ("timestep_type", json!("continuous")),
        ("prediction_type", json!("sample")),
        ("skip_prk_steps", json!(false)),
        ("sigma_max", json!(80.0)),
        ("beta_schedule", json!("sigmoid")),
        ("timestep_spacing", json!("log")),
        ("final_sigmas_type", json!("sigma_max")),
    ] {
        assert_eq!(refused(scheduler(&json!({ key: value }))), [key], "{value}");
    }
    let honoured = json!({ "use_karras_sigmas": true, "rescale_betas_zero_snr": true, "timestep_spacing": "trailing",
        "final_sigmas_type": "sigma_min", "set_alpha_to_one": true, "prediction_type": "v_prediction" });
    let config = scheduler(&honoured).unwrap();
    assert!(config.use_karras_sigmas && config.rescale_betas_zero_snr && config.set_alpha_to_one == Some(true));
}

#[test]
fn a_long_value_is_shortened_in_the_message() {
    let message = unet(&json!({ "in_channels": "x".repeat(100_000) })).unwrap_err().to_string();
    assert!(message.len() < 1000 && message.contains("`in_channels` is `\"xxx"), "{message}");
}
