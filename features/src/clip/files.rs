//! The files of a CLIP model, from a folder or from memory.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::error::{Error, Result};

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: [&str; 5] =
    ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/// The contents of a CLIP or SigLIP folder.
pub struct ClipFiles {
    /// The extractor's name in reports.
    pub name: String,
    /// `config.json`.
    pub config: Vec<u8>,
    /// `preprocessor_config.json`.
    pub preprocessor: Vec<u8>,
    /// `model.safetensors`.
    pub weights: Vec<u8>,
    /// The tokenizer's files by name, as far as they exist; images need none.
    pub tokenizer: BTreeMap<&'static str, Vec<u8>>,
}

impl ClipFiles {
    /// Reads a folder as transformers writes it.
    ///
    /// # Errors
    /// When a file cannot be read, or one that images need is missing.
    pub fn folder(folder: &Path) -> Result<Self> {
        let read = |file: &str| {
            let path = folder.join(file);
            std::fs::read(&path).map_err(|source| Error::ReadFile { path, source })
        };
        let name = folder.file_name().unwrap_or(folder.as_os_str());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            config: read(CONFIG)?,
            preprocessor: read(PREPROCESSOR)?,
            weights: read(WEIGHTS)?,
            tokenizer: tokenizer_files(|file| match read(file) {
                Err(Error::ReadFile { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
                found => found.map(Some),
            })?,
        })
    }

    /// The same files from memory, for instance from the program's own binary. `find` returns the contents of a file by
    /// its name; `name` becomes the extractor's name.
    ///
    /// # Errors
    /// When a file that images need is not found.
    pub fn from_bytes<'a>(name: &str, find: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self> {
        let find = |file: &str| find(file).map(<[u8]>::to_vec);
        let require = |file: &'static str| find(file).ok_or_else(|| Error::MissingFile { name: name.to_owned(), file });
        Ok(Self {
            name: name.to_owned(),
            config: require(CONFIG)?,
            preprocessor: require(PREPROCESSOR)?,
            weights: require(WEIGHTS)?,
            tokenizer: tokenizer_files(|file| Ok(find(file)))?,
        })
    }
}

fn tokenizer_files(read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<BTreeMap<&'static str, Vec<u8>>> {
    let named = |file| Ok(read(file)?.map(|bytes| (file, bytes)));
    TOKENIZER.into_iter().filter_map(|file| named(file).transpose()).collect()
}
