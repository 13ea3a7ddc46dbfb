//! Bounds on what files of a base and images may take. The counter belongs to the whole process, so this file is a process
//! whose test functions wait for each other.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

use std::fs;
use std::path::PathBuf;

use candle_core::{DType, Device};
use catelier_pipelines::Error;
use catelier_pipelines::data::DecodedImage;
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::files::ModelFiles;
use catelier_testkit::allocations::CountingAllocator;
use catelier_testkit::golden::{Golden, copy_folder};
use serde_json::{Map, Value, json};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// The result of `work` and the peak of its memory.
fn measured<R>(work: impl FnOnce() -> R) -> (R, u64) {
    let (result, allocated) = ALLOCATOR.measure(work);
    (result, allocated.peak_of_all_bytes)
}

/// Keys that do not change results, whatever their value.
const IRRELEVANT: &[&str] = &[
    "_diffusers_version",
    "_name_or_path",
    "addition_embed_type_num_heads",
    "attention_dropout",
    "bos_token_id",
    "clip_sample_range",
    "dropout",
    "dtype",
    "dynamic_thresholding_ratio",
    "initializer_factor",
    "initializer_range",
    "pad_token_id",
    "sample_max_value",
    "torch_dtype",
    "transformers_version",
    "upcast_attention",
];

/// Numbers of each configuration that the files of the tiny models leave out.
const MORE_KEYS: &[(&str, &[&str])] = &[
    (
        "unet",
        &["time_embedding_dim", "norm_eps", "conv_in_kernel", "transformer_layers_per_block", "time_cond_proj_dim"],
    ),
    ("vae", &["scaling_factor", "shift_factor", "layers_per_block", "latents_mean"]),
    ("scheduler", &["original_inference_steps", "timestep_scaling", "solver_order", "sigma_max", "thresholding"]),
    ("text_encoder", &[]),
    ("text_encoder_2", &[]),
];

#[test]
fn a_base_with_one_absurd_value_is_refused_by_key_and_takes_no_memory() {
    let _alone = ALLOCATOR.alone();
    let numbers = [json!(0), json!(-1), json!(1u64 << 31), json!(1u64 << 63), json!(1e8)];
    let others = [json!("x"), Value::Null, json!([]), json!(vec![1; 300_000])];
    let absurd: Vec<Value> = numbers.into_iter().chain(others).collect();
    for (model, parts) in
        [("tiny-sd1", &["unet", "vae", "text_encoder", "scheduler"][..]), ("tiny-sdxl", &["unet", "text_encoder_2"])]
    {
        let folder = Copy::of(model);
        let (whole, floor) = measured(|| folder.load());
        whole.unwrap();
        for part in parts {
            let original = folder.config(part);
            let more = MORE_KEYS.iter().find(|(name, _)| name == part).unwrap().1;
            let keys = original.keys().map(String::as_str).chain(more.iter().copied());
            for key in keys.filter(|key| !IRRELEVANT.contains(key) && (*part, *key) != ("vae", "sample_size")) {
                for value in &absurd {
                    let mut config = original.clone();
                    config.insert(key.to_owned(), value.clone());
                    folder.check(part, &config, key, value, floor);
                }
            }
            folder.write(part, &Value::Object(original));
        }
    }
}

/// A copy of a tiny model whose configurations are changed.
struct Copy {
    folder: tempfile::TempDir,
    model: &'static str,
}

impl Copy {
    fn of(model: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&Golden::open().model(model), folder.path());
        Self { folder, model }
    }

    fn path(&self, part: &str) -> PathBuf {
        let file = if part == "scheduler" { "scheduler_config.json" } else { "config.json" };
        self.folder.path().join(part).join(file)
    }

    fn config(&self, part: &str) -> Map<String, Value> {
        serde_json::from_slice(&fs::read(self.path(part)).unwrap()).unwrap()
    }

    fn write(&self, part: &str, config: &Value) {
        fs::write(self.path(part), config.to_string()).unwrap();
    }

    fn load(&self) -> Result<BaseModel, Error> {
        BaseModel::load(&ModelFiles::folder(self.folder.path()), DType::F32, &Device::Cpu)
    }

    /// Loads the base with this configuration: it is refused by key, unless null or the number is an allowed value.
    fn check(&self, part: &str, config: &Map<String, Value>, key: &str, value: &Value, floor: u64) {
        self.write(part, &Value::Object(config.clone()));
        let (loaded, peak) = measured(|| self.load());
        let what = format!("{} {part} `{key}` = {value}", self.model);
        assert!(peak <= floor + (64 << 20), "{what}: {peak} bytes, the whole base takes {floor}");
        match loaded.map_err(|error| error.to_string()) {
            Ok(_) => assert!(may_be(key, value), "{what} was accepted"),
            // Allowed in itself, but not with these weights.
            Err(message) if message.contains("do not fit") => assert!(may_be(key, value), "{what}: {message}"),
            Err(message) => {
                assert!(message.contains(&format!("`{key}`")), "{what}: {message}");
                assert!(message.contains(&format!("{part}/")), "{what}: {message}");
            }
        }
    }
}

/// Absurd values that are none for these keys.
fn may_be(key: &str, value: &Value) -> bool {
    let zero = ["freq_shift", "norm_eps", "layer_norm_eps", "steps_offset", "eos_token_id", "shift_factor"];
    let zero_layers = key == "transformer_layers_per_block";
    match value {
        Value::Null => true,
        Value::Number(number) if number.as_f64() == Some(0.0) => zero.contains(&key) || zero_layers,
        Value::Number(number) if number.as_f64() == Some(-1.0) => key == "shift_factor",
        Value::Number(_) => key == "eos_token_id",
        Value::String(_) => key == "_class_name",
        Value::Array(_) => key == "disable_corrector",
        _ => false,
    }
}

#[test]
fn a_base_whose_configuration_is_of_another_size_takes_no_memory() {
    let _alone = ALLOCATOR.alone();
    let folder = Copy::of("tiny-sd1");
    let (_, floor) = measured(|| folder.load().unwrap());
    for (part, config) in [
        ("unet", json!({})),
        (
            "unet",
            json!({ "block_out_channels": vec![16_384; 8], "down_block_types": vec!["CrossAttnDownBlock2D"; 8],
            "up_block_types": vec!["CrossAttnUpBlock2D"; 8], "layers_per_block": 8, "transformer_layers_per_block": 16,
            "cross_attention_dim": 32 }),
        ),
        ("vae", json!({})),
        ("text_encoder", json!({ "num_hidden_layers": 256, "intermediate_size": 65_536 })),
    ] {
        let folder = Copy::of("tiny-sd1");
        folder.write(part, &config);
        let (loaded, peak) = measured(|| folder.load());
        assert!(loaded.is_err(), "{config}");
        assert!(peak <= floor + (64 << 20), "{part} {config}: {peak} bytes");
    }
    let path = folder.path("unet");
    fs::write(&path, "[".repeat(100_000)).unwrap();
    assert!(folder.load().unwrap_err().to_string().contains("unet/config.json"));
    fs::write(&path, " ".repeat(2 << 20)).unwrap();
    assert!(folder.load().unwrap_err().to_string().contains("config.json"));
}

#[test]
fn an_image_takes_at_most_half_a_gigabyte() {
    let _alone = ALLOCATOR.alone();
    let most = (512 << 20) + (40 << 20);
    let decode = |bytes: Vec<u8>| measured(|| DecodedImage::decode(&bytes).map(|image| image.pixels.dimensions()));
    let whole = |side, colour, depth, row: usize| {
        let mut bytes = vec![];
        let mut encoder = png::Encoder::new(&mut bytes, side, side);
        encoder.set_color(colour);
        encoder.set_depth(depth);
        encoder.set_compression(png::Compression::Fast);
        let mut writer = encoder.write_header().unwrap();
        let mut stream = writer.stream_writer().unwrap();
        let row = vec![0u8; row];
        (0..side).for_each(|_| std::io::Write::write_all(&mut stream, &row).unwrap());
        stream.finish().unwrap();
        drop(writer);
        bytes
    };
    use png::{BitDepth, ColorType};
    for (bytes, accepted) in [
        (whole(8000, ColorType::Rgba, BitDepth::Sixteen, 64_000), false),
        (whole(16_000, ColorType::Grayscale, BitDepth::One, 2000), false),
        (whole(2000, ColorType::Rgba, BitDepth::Sixteen, 16_000), true),
        (whole(6000, ColorType::Grayscale, BitDepth::One, 750), true),
    ] {
        let (decoded, peak) = decode(bytes);
        assert_eq!(decoded.is_ok(), accepted);
        assert!(peak <= most, "{peak} bytes");
    }
}

#[test]
fn a_colour_profile_is_unpacked_up_to_a_limit() {
    let _alone = ALLOCATOR.alone();
    let with_profile = |bytes: usize| {
        let mut file = vec![];
        let mut info = png::Info::with_size(2, 2);
        info.icc_profile = Some(vec![0; bytes].into());
        let mut writer = png::Encoder::with_info(&mut file, info).unwrap().write_header().unwrap();
        writer.write_image_data(&[7; 4]).unwrap();
        drop(writer);
        file
    };
    let (honest, bomb) = (with_profile(4 << 20), with_profile(200_000_000));
    assert!(DecodedImage::decode(&honest).is_ok() && bomb.len() < 1_000_000);
    // An image without a readable profile is still an image.
    let (_, peak) = measured(|| DecodedImage::decode(&bomb));
    assert!(peak < 80 << 20, "{peak} bytes");
}
