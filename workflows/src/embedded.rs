//! The base in this crate: a real, tiny model of the drawn world, and the CLIP model that compares its images.

use catelier_features::Clip;
use catelier_features::clip::ClipFiles;
use catelier_pipelines::models::files::{EmbeddedFile, ModelFiles};

use crate::error::{Context, Result};

/// Files of the repository's `base/` folder, by their path inside it.
macro_rules! base_files {
    ($($path:literal),+ $(,)?) => {
        &[$(EmbeddedFile { path: $path, bytes: include_bytes!(concat!("../../base/", $path)) }),+]
    };
}

static FILES: &[EmbeddedFile] = base_files![
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

static CLIP_FILES: &[EmbeddedFile] = base_files![
    "clip/config.json",
    "clip/model.safetensors",
    "clip/preprocessor_config.json",
    "clip/merges.txt",
    "clip/special_tokens_map.json",
    "clip/tokenizer_config.json",
    "clip/vocab.json",
];

/// The base's files.
pub fn files() -> ModelFiles {
    ModelFiles::embedded(FILES)
}

/// The CLIP model of the drawn world, on the CPU.
///
/// # Errors
/// [`Error::Failed`](crate::Error::Failed) for a damaged program.
pub fn clip() -> Result<Clip> {
    let find = |name: &str| CLIP_FILES.iter().find(|file| file.path.strip_prefix("clip/") == Some(name));
    let files = ClipFiles::from_bytes("embedded", |name| find(name).map(|file| file.bytes));
    let files = files.failed("cannot read the embedded CLIP model")?;
    Clip::from_files(files, &candle_core::Device::Cpu).failed("cannot load the embedded CLIP model")
}
