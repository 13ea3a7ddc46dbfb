//! One file of a base model's folder, beside others that are whole. The first line of an input is its path.

use std::path::Path;

use candle_core::{DType, Device};
use catelier_workflows::pipelines::models::base::{BaseConfig, BaseModel};
use catelier_workflows::pipelines::models::files::ModelFiles;

use crate::{Verdict, folder, refused};

const FILES: &[&str] = &[
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
];

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_model("tiny-sd1", FILES, input, load)
}

fn load(folder: &Path) -> Verdict {
    let files = ModelFiles::folder(folder);
    let config = match BaseConfig::load(&files) {
        Ok(config) => config,
        Err(error) => return refused(&error),
    };
    let described = (config.family(), config.resolution(), config.tokens(), config.parameters());
    assert!(!config.modules().is_empty(), "a base without a module was accepted: {described:?}");
    match BaseModel::from_config(config, &files, DType::F32, &Device::Cpu) {
        Ok(_) => Verdict::Accepted,
        Err(error) => refused(&error),
    }
}
