//! Prompts that have been encoded before.

use std::collections::BTreeMap;

use catelier_adapters::AdapterSet;

use crate::error::Result;
use crate::models::{Condition, TextEncoders};

/// Encoded prompts by their text; one row each.
///
/// Holds the conditions of the base's encoders. Where adapters change the encoders, prompts are encoded
/// anew each time: an adapter set has no name that a cache could be keyed by.
#[derive(Debug, Default)]
pub(super) struct PromptCache {
    rows: BTreeMap<String, Condition>,
}

impl PromptCache {
    /// One row for each of `prompts`, encoding those that are new.
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
