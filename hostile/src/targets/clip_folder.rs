//! One file of a CLIP folder, beside others that are whole. The first line of an input is its name.

use std::fs;

use candle_core::Device;
use catelier_testkit::golden::Golden;
use catelier_workflows::features::Clip;

use crate::{Verdict, folder, refused};

const MODEL: &str = "tiny-clip";
const FILES: &[&str] = &[
    "config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    MERGES,
    VOCABULARY,
];
const MERGES: &str = "merges.txt";
const VOCABULARY: &str = "vocab.json";

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_model(MODEL, FILES, input, |folder| match Clip::from_folder(folder, &Device::Cpu) {
        Ok(_) => Verdict::Accepted,
        Err(error) => refused(&error),
    })
}

/// The files of the tokenizer; the others are in the corpus.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let folder = Golden::open().model(MODEL);
    let seed = |name: &&str| [name.as_bytes(), b"\n", &fs::read(folder.join(name)).unwrap()].concat();
    [MERGES, VOCABULARY].iter().map(seed).collect()
}
