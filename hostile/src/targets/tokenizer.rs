//! A tokenizer in one file, as newer folders have it.

use std::fs;

use catelier_testkit::golden::Golden;
use catelier_workflows::prompts::Tokenizer;
use serde_json::{Value, json};

use crate::{Verdict, folder, refused};

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_file("tokenizer", "tokenizer.json", input, |path| {
        match Tokenizer::from_folder(path.parent().unwrap()) {
            Ok(tokenizer) => {
                super::prompt_text::tokenize(&tokenizer, "a red house, shs");
                Verdict::Accepted
            }
            Err(error) => refused(&error),
        }
    })
}

/// The vocabulary and the merges of a folder with several files.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let folder = Golden::open().model("tiny-sd1").join("tokenizer");
    let vocabulary: Value = serde_json::from_slice(&fs::read(folder.join("vocab.json")).unwrap()).unwrap();
    let merges = fs::read_to_string(folder.join("merges.txt")).unwrap();
    let merges: Vec<&str> = merges.lines().filter(|line| !line.starts_with('#')).collect();
    let pairs: Vec<Vec<&str>> = merges.iter().map(|line| line.split(' ').collect()).collect();
    // Older versions write a merge as one text, newer ones as a pair.
    let file =
        |merges: Value| json!({ "version": "1.0", "model": { "type": "BPE", "vocab": vocabulary, "merges": merges } });
    [json!(merges), json!(pairs)].map(|merges| file(merges).to_string().into_bytes()).to_vec()
}
