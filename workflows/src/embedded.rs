//! The base in this crate: a real, tiny model of the drawn world, and the models that compare its images.

use candle_core::Device;
use catelier_features::Clip;
use catelier_features::clip::{ClipFiles, ImageEncoder};
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

static STYLE_FILES: &[EmbeddedFile] =
    base_files!["style/config.json", "style/model.safetensors", "style/preprocessor_config.json",];

/// The base's files.
pub fn files() -> ModelFiles {
    ModelFiles::embedded(FILES)
}

/// The CLIP model of the drawn world, on the CPU.
///
/// # Errors
/// [`Error::Failed`](crate::Error::Failed) for a damaged program.
pub fn clip() -> Result<Clip> {
    let files = contents("embedded", CLIP_FILES)?;
    Clip::from_files(files, &Device::Cpu).failed("cannot load the embedded CLIP model")
}

/// The style tower of the drawn world, on the CPU. It was taught by random styles and has seen no artist.
///
/// # Errors
/// [`Error::Failed`](crate::Error::Failed) for a damaged program.
pub fn style() -> Result<ImageEncoder> {
    let files = contents("embedded style tower", STYLE_FILES)?;
    ImageEncoder::from_files(files, &Device::Cpu).failed("cannot load the embedded style tower")
}

/// The files of a model that compares images, by their names in its folder.
fn contents(name: &str, files: &[EmbeddedFile]) -> Result<ClipFiles> {
    let find =
        |wanted: &str| files.iter().find(|file| file.path.split_once('/').is_some_and(|(_, name)| name == wanted));
    ClipFiles::from_bytes(name, |wanted| find(wanted).map(|file| file.bytes)).failed("cannot read an embedded model")
}
