//! One file of a CLIP folder, beside others that are whole. The first line of an input is its name.

use std::cell::OnceCell;
use std::fs;
use std::path::PathBuf;

use candle_core::Device;
use catelier_testkit::golden::Golden;
use catelier_workflows::features::Clip;

use crate::{Verdict, folder, refused};

const FILES: &[&str] = &["config.json", "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json"];

thread_local! {
    static CLIP: OnceCell<PathBuf> = const { OnceCell::new() };
}

pub(super) fn read(input: &[u8]) -> Verdict {
    let (name, bytes) = folder::named(input, FILES);
    let clip = clip();
    let path = clip.join(name);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let loaded = std::panic::catch_unwind(|| Clip::from_folder(&clip, &Device::Cpu));
    fs::write(&path, whole).unwrap();
    match loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
        Ok(_) => Verdict::Accepted,
        Err(error) => refused(&error),
    }
}

/// This thread's copy of a CLIP model.
fn clip() -> PathBuf {
    CLIP.with(|clip| {
        clip.get_or_init(|| {
            folder::with(|folder| {
                let copy = folder.join("clip");
                folder::copy(&Golden::open().model("tiny-clip"), &copy);
                copy
            })
        })
        .clone()
    })
}
