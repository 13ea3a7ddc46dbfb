//! Reading the configuration and the fingerprint of a full-size base takes little memory. Memory belongs to the whole
//! process, so this file is a process with one test function.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use catelier_adapters::{BaseFamily, Component, ModuleInfo, Targets};
use catelier_pipelines::models::base::BaseConfig;
use catelier_pipelines::models::files::ModelFiles;
use catelier_testkit::allocations::CountingAllocator;
use serde_json::{Map, Value, json};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn a_full_size_sdxl_is_described_without_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_configs(folder.path());
    let files = ModelFiles::folder(folder.path());
    let config = BaseConfig::load(&files).unwrap();
    write_sparse_weights(folder.path(), &config.modules());

    let ((config, modules, fingerprint), allocated) = ALLOCATOR.measure(|| {
        let config = BaseConfig::load(&files).unwrap();
        let modules = config.modules();
        let fingerprint = config.fingerprint(&files).unwrap();
        (config, modules, fingerprint)
    });
    assert_eq!((config.family(), config.resolution(), config.tokens()), (BaseFamily::Sdxl, 1024, 77));
    let attention = Targets::attention().select(&modules).unwrap();
    let of_unet = attention.iter().filter(|module| module.path.starts_with("unet.")).count();
    // Four projections in each attention layer; the text encoders have 12 and 32 of them.
    assert_eq!((of_unet, attention.len() - of_unet), (560, 4 * (12 + 32)));
    let parameters: Vec<u64> = config.parameters().into_values().collect();
    assert_eq!(parameters, [2_567_463_684, 123_060_480, 694_659_840]);
    assert_eq!(fingerprint.split('-').count(), 3, "{fingerprint}");
    assert!(allocated.peak_bytes < 32 << 20, "{} bytes allocated", allocated.peak_bytes);
    if let Some(peak) = peak_resident_bytes() {
        assert!(peak < 200 << 20, "{peak} bytes resident");
    }
}

fn write_configs(folder: &Path) {
    let configs = [
        ("model_index.json", json!({"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": true})),
        (
            "unet/config.json",
            json!({
                "block_out_channels": [320, 640, 1280], "sample_size": 128, "use_linear_projection": true,
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10],
                "cross_attention_dim": 2048, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816
            }),
        ),
        ("vae/config.json", json!({"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2})),
        (
            "text_encoder/config.json",
            json!({"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}),
        ),
        (
            "text_encoder_2/config.json",
            json!({
                "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "hidden_size": 1280,
                "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280
            }),
        ),
        ("scheduler/scheduler_config.json", json!({"beta_schedule": "scaled_linear"})),
    ];
    for (path, config) in configs {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, config.to_string()).unwrap();
    }
}

/// Weights with the right names and shapes whose values are holes in sparse files.
fn write_sparse_weights(folder: &Path, modules: &[ModuleInfo]) {
    for (component, file) in [
        (Component::Unet, "diffusion_pytorch_model.safetensors"),
        (Component::TextEncoder, "model.safetensors"),
        (Component::TextEncoder2, "model.safetensors"),
    ] {
        let prefix = format!("{component}.");
        let (mut header, mut end) = (Map::new(), 0);
        for module in modules.iter().filter(|module| module.path.starts_with(&prefix)) {
            let shape = [&module.kind.up_shape(1)[..1], &module.kind.down_shape(1)[1..]].concat();
            let bytes = 4 * shape.iter().product::<usize>();
            let name = format!("{}.weight", module.path.trim_start_matches(&prefix));
            header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [end, end + bytes]}));
            end += bytes;
        }
        write_sparse(&folder.join(component.name()).join(file), &Value::Object(header).to_string(), end);
    }
    write_sparse(&folder.join("vae/diffusion_pytorch_model.safetensors"), "{}", 0);
}

fn write_sparse(path: &Path, header: &str, data: usize) {
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + data) as u64).unwrap();
}

/// Peak memory of this process; `None` if the system does not report it.
fn peak_resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}
