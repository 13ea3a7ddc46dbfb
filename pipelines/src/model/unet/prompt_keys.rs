//! Keys and values of the attention to the prompt, which are the same in every step.

use std::collections::BTreeMap;

use candle_core::{Result as TensorResult, Tensor};

use crate::error::{Error, Result};

/// What every attention to the prompt makes of one condition under one adapter set: computed once, and used in every
/// step that has both.
#[derive(Debug, Clone, Default)]
pub struct PromptKeys {
    /// By the path of the transformer block: keys and values, `[batch, tokens, channels]` each.
    blocks: BTreeMap<String, [Tensor; 2]>,
}

/// What a prediction knows of the prompt.
#[derive(Clone, Copy)]
pub(super) enum Prompt<'a> {
    /// Nothing: there is no attention before the first.
    Unseen,
    /// Hidden states of the text encoder: `[batch, tokens, width]`.
    Context(&'a Tensor),
    /// What the blocks make of them.
    Keys(&'a PromptKeys),
}

impl PromptKeys {
    /// The rows of all `parts`, one after another.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when there are none, or they are of different models.
    pub fn cat(parts: &[&Self]) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(mismatch("none"));
        };
        if parts.len() == 1 {
            return Ok((*first).clone());
        }
        let joined = |path: &String| {
            let rows: Option<Vec<&[Tensor; 2]>> = parts.iter().map(|part| part.blocks.get(path)).collect();
            let rows = rows.ok_or_else(|| mismatch(path))?;
            let join = |which: usize| Tensor::cat(&rows.iter().map(|row| &row[which]).collect::<Vec<_>>(), 0);
            Ok((path.clone(), [join(0)?, join(1)?]))
        };
        Ok(Self { blocks: first.blocks.keys().map(joined).collect::<Result<_>>()? })
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.blocks.values().flatten().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }

    pub(super) fn insert(&mut self, path: &str, keys: Tensor, values: Tensor) {
        self.blocks.insert(path.to_owned(), [keys.detach(), values.detach()]);
    }

    pub(super) fn get(&self, path: &str) -> TensorResult<&[Tensor; 2]> {
        self.blocks.get(path).ok_or_else(|| candle_core::Error::msg(format!("no keys of the prompt for `{path}`")))
    }
}

fn mismatch(found: &str) -> Error {
    Error::InvalidInput { what: "prompt keys", expected: "at least one, all of one model".into(), found: found.into() }
}
