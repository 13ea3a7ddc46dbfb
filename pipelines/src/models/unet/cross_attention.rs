//! Keys and values of cross-attention. They depend on the prompt alone, so all steps of a sampler or a run share them.

use std::collections::BTreeMap;

use candle_core::{Result as TensorResult, Tensor};

use crate::error::{Error, Result};

/// Keys and values of every cross-attention layer for one condition under one adapter set, computed once for all steps.
#[derive(Debug, Clone, Default)]
pub struct CrossAttentionKv {
    /// Keys and values by the path of the transformer block, `[batch, tokens, channels]` each.
    blocks: BTreeMap<String, [Tensor; 2]>,
}

/// How the prompt reaches a block.
#[derive(Clone, Copy)]
pub(super) enum PromptInput<'a> {
    /// The block does not see it: the prefix has no cross-attention.
    Unseen,
    /// As hidden states of the text encoder: `[batch, tokens, width]`.
    Context(&'a Tensor),
    /// As keys and values computed before.
    Kv(&'a CrossAttentionKv),
}

impl CrossAttentionKv {
    /// The rows of all `parts`, in order.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if there are no parts, or if they come from different models.
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

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> usize {
        self.blocks.values().flatten().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }

    pub(super) fn insert(&mut self, path: &str, keys: Tensor, values: Tensor) {
        self.blocks.insert(path.to_owned(), [keys.detach(), values.detach()]);
    }

    pub(super) fn get(&self, path: &str) -> TensorResult<&[Tensor; 2]> {
        let missing = || candle_core::Error::msg(format!("no cross-attention keys and values for `{path}`"));
        self.blocks.get(path).ok_or_else(missing)
    }
}

fn mismatch(found: &str) -> Error {
    let expected = "at least one, all of one model".into();
    Error::InvalidInput { what: "cross-attention keys and values", expected, found: found.into() }
}
