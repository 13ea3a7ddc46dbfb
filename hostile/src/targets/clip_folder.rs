//! One file of a CLIP folder, beside others that are whole. The first line of an input is its name.

use candle_core::Device;
use catelier_workflows::features::Clip;

use crate::{Verdict, folder, refused};

const FILES: &[&str] = &["config.json", "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json"];

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_model("tiny-clip", FILES, input, |folder| match Clip::from_folder(folder, &Device::Cpu) {
        Ok(_) => Verdict::Accepted,
        Err(error) => refused(&error),
    })
}
