//! The condition of every distinct text, encoded once before training.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::models::Condition;

/// Encoded texts, one row each, without a graph.
#[derive(Debug, Clone, Default)]
pub struct Embeddings {
    rows: BTreeMap<String, Condition>,
}

impl Embeddings {
    /// Encodes the texts that are not known yet with `encode`, one at a time.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn add<'a>(
        &mut self,
        texts: impl IntoIterator<Item = &'a str>,
        mut encode: impl FnMut(&str) -> Result<Condition>,
    ) -> Result<()> {
        for text in texts {
            if !self.rows.contains_key(text) {
                self.rows.insert(text.to_owned(), encode(text)?.detach());
            }
        }
        Ok(())
    }

    /// The condition of a text, `context: [1, tokens, width]`; `None` if it has not been encoded.
    pub fn get(&self, text: &str) -> Option<&Condition> {
        self.rows.get(text)
    }

    /// Number of distinct texts.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no text has been encoded.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn each_text_is_encoded_once() {
        let mut asked = vec![];
        let mut encode = |text: &str| {
            asked.push(text.to_owned());
            let context = Tensor::full(text.len() as f32, (1, 2, 3), &Device::Cpu)?;
            Ok(Condition { context, added: None })
        };
        let mut embeddings = Embeddings::default();
        assert!(embeddings.is_empty());
        embeddings.add(["a dog", "", "a dog"], &mut encode).unwrap();
        embeddings.add(["a cat", "a dog"], &mut encode).unwrap();
        assert_eq!(asked, ["a dog", "", "a cat"]);
        assert_eq!(embeddings.len(), 3);
        let context = &embeddings.get("a dog").unwrap().context;
        assert_eq!(context.mean_all().unwrap().to_scalar::<f32>().unwrap(), 5.0);
        assert!(embeddings.get("a cow").is_none());
    }
}
