//! Texts to token ids, by the rules of each model family.

use std::collections::BTreeMap;

use candle_transformers::models::siglip;
use catelier_prompts::Tokenizer as ClipTokenizer;
use serde_json::Value;
use tokenizers::{PaddingParams, PaddingStrategy, Tokenizer as WholeTokenizer, TruncationParams};

use super::config::TextConfig;
use super::files::ClipFiles;
use crate::error::{Error, Result};

/// Texts to ids of one length; tokens beyond the context are cut off.
pub(super) enum TextTokenizer {
    /// CLIP's byte pairs.
    Clip(ClipTokenizer),
    /// The pipeline of `tokenizer.json`: SigLIP's sentencepiece, SigLIP 2's Gemma.
    Siglip(WholeTokenizer),
}

impl TextTokenizer {
    /// CLIP's tokenizer; its length must fit the tower's positions.
    pub(super) fn clip(files: &ClipFiles, config: &TextConfig) -> Result<Self> {
        let read = |file: &str| Ok(files.tokenizer.get(file).cloned());
        let tokenizer = ClipTokenizer::from_files(&files.name, read)?;
        let (length, room) = (tokenizer.max_length(), config.max_position_embeddings);
        if length > room {
            return Err(Error::UnsupportedSetting {
                file: "config.json",
                setting: "max_position_embeddings",
                expected: format!("at least {length}, the tokenizer's length"),
                found: room.to_string(),
            });
        }
        Ok(Self::Clip(tokenizer))
    }

    /// SigLIP's tokenizer. Its towers were trained on texts padded to the whole context without a mask, so padding is
    /// part of the text.
    pub(super) fn siglip(files: &ClipFiles, config: &siglip::TextConfig) -> Result<Self> {
        const FILE: &str = "tokenizer.json";
        let missing = || Error::MissingFile { name: files.name.clone(), file: FILE };
        let bytes = files.tokenizer.get(FILE).ok_or_else(missing)?;
        let mut tokenizer = WholeTokenizer::from_bytes(bytes).map_err(unusable)?;
        let length = config.max_position_embeddings;
        let truncation = TruncationParams { max_length: length, ..TruncationParams::default() };
        let pad_id = pad_id(&files.tokenizer, &tokenizer).unwrap_or(config.pad_token_id);
        let strategy = PaddingStrategy::Fixed(length);
        tokenizer.with_padding(Some(PaddingParams { strategy, pad_id, ..PaddingParams::default() }));
        tokenizer.with_truncation(Some(truncation)).map_err(unusable)?;
        Ok(Self::Siglip(tokenizer))
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Clip(tokenizer) => Ok(tokenizer.encode(text)?.ids),
            Self::Siglip(tokenizer) => {
                let failed =
                    |error: tokenizers::Error| Error::Tokenize { text: text.to_owned(), reason: error.to_string() };
                Ok(tokenizer.encode(text, true).map_err(failed)?.get_ids().to_vec())
            }
        }
    }
}

/// The id of the `pad_token` in `tokenizer_config.json`, which is text or an object with `content`.
fn pad_id(files: &BTreeMap<&'static str, Vec<u8>>, tokenizer: &WholeTokenizer) -> Option<u32> {
    let config: Value = serde_json::from_slice(files.get("tokenizer_config.json")?).ok()?;
    let token = &config["pad_token"];
    tokenizer.token_to_id(token.as_str().or_else(|| token["content"].as_str())?)
}

fn unusable(error: tokenizers::Error) -> Error {
    Error::TokenizerJson { reason: error.to_string() }
}
