//! One file of a base model's folder, beside others that are whole. The first line of an input is its path.

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;

use candle_core::{DType, Device};
use catelier_testkit::golden::Golden;
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

thread_local! {
    static BASE: OnceCell<PathBuf> = const { OnceCell::new() };
}

pub(super) fn read(input: &[u8]) -> Verdict {
    let (name, bytes) = folder::named(input, FILES);
    let path = base().join(name);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let verdict = std::panic::catch_unwind(load);
    fs::write(&path, whole).unwrap();
    verdict.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// This thread's copy of a base.
fn base() -> PathBuf {
    BASE.with(|base| {
        base.get_or_init(|| {
            folder::with(|folder| {
                let copy = folder.join("base");
                folder::copy(&Golden::open().model("tiny-sd1"), &copy);
                copy
            })
        })
        .clone()
    })
}

fn load() -> Verdict {
    let files = ModelFiles::folder(base());
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
