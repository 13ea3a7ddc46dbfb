//! The files of a CLIP model, from a folder or from memory.

use std::path::Path;

use catelier_prompts::Tokenizer;

use crate::error::{Error, Result};

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const WEIGHTS: &str = "model.safetensors";

/// The contents of a CLIP folder.
pub struct ClipFiles {
    /// The extractor's name in reports.
    pub name: String,
    /// `config.json`.
    pub config: Vec<u8>,
    /// `preprocessor_config.json`.
    pub preprocessor: Vec<u8>,
    /// `model.safetensors`.
    pub weights: Vec<u8>,
    /// The tokenizer, from the tokenizer's files.
    pub tokenizer: Tokenizer,
}

impl ClipFiles {
    /// Reads a folder as transformers writes it.
    ///
    /// # Errors
    /// When a file cannot be read or the tokenizer's files are malformed.
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
            tokenizer: Tokenizer::from_folder(folder)?,
        })
    }

    /// The same files from memory, for instance from inside the program; `find` gives a file's
    /// contents by its name, and `name` becomes the extractor's name.
    ///
    /// # Errors
    /// When a file is not found or the tokenizer's files are malformed.
    pub fn from_bytes<'a>(name: &str, find: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self> {
        let read = |file: &'static str| {
            let missing = || Error::MissingFile { name: name.to_owned(), file };
            find(file).map(<[u8]>::to_vec).ok_or_else(missing)
        };
        let tokenizer = |file: &str| Ok(find(file).map(<[u8]>::to_vec));
        Ok(Self {
            name: name.to_owned(),
            config: read(CONFIG)?,
            preprocessor: read(PREPROCESSOR)?,
            weights: read(WEIGHTS)?,
            tokenizer: Tokenizer::from_files(name, tokenizer)?,
        })
    }
}
