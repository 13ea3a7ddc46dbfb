//! A cache of encoded prompts.

use std::collections::BTreeMap;

use catelier_adapters::AdapterSet;

use crate::error::Result;
use crate::models::{Condition, TextEncoders};

/// Encoded prompts by their text, one row each.
///
/// It holds the conditions of the base's text encoders. If adapters change the text encoders, prompts are encoded each
/// time: an adapter set has no name that could serve as a key.
#[derive(Debug, Default)]
pub(super) struct PromptCache {
    rows: BTreeMap<String, Condition>,
}

impl PromptCache {
    /// One row per prompt; encodes the prompts that are not in the cache.
    pub(super) fn rows(&mut self, text: &TextEncoders, prompts: &[String], adapters: &AdapterSet) -> Result<Condition> {
        if text.adapted_by(adapters) {
            let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
            return Ok(text.encode_with(&prompts, 0, adapters)?.detach());
        }
        for prompt in prompts {
            if !self.rows.contains_key(prompt) {
                self.rows.insert(prompt.clone(), text.encode(&[prompt])?.detach());
            }
        }
        let rows: Vec<&Condition> = prompts.iter().map(|prompt| &self.rows[prompt]).collect();
        Condition::cat(&rows)
    }
}
