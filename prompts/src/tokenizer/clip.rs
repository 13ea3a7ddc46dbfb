//! The byte-pair pipeline, made from the values of a tokenizer folder.

use std::collections::BTreeMap;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, NormalizerWrapper, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::Tokenizer;
use super::files::{ROLES, TokenizerFiles, broken};
use crate::{Error, Result};

/// One word: a special token, an English contraction, letters, a single digit, or punctuation.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The ids of the special tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpecialIds {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) pad: u32,
}

impl TokenizerFiles {
    pub(super) fn build(self) -> Result<Tokenizer> {
        let [start, end, _unknown, pad] = self.special_ids()?;
        let max_length = self.max_length;
        let vocabulary = self.vocab.values().max().map_or(0, |id| *id as usize + 1);
        Ok(Tokenizer {
            vocabulary,
            pieces: self.pipeline().map_err(|error| broken("vocab.json", error.to_string()))?,
            special: SpecialIds { start, end, pad },
            max_length,
        })
    }

    fn special_ids(&self) -> Result<[u32; 4]> {
        let mut ids = [0; 4];
        for ((id, token), (role, _, _)) in ids.iter_mut().zip(&self.special).zip(ROLES) {
            *id = *self.vocab.get(&token.content).ok_or_else(|| Error::SpecialTokenUnknown {
                role,
                token: token.content.clone(),
                vocabulary: self.vocab.len(),
            })?;
        }
        Ok(ids)
    }

    fn pipeline(self) -> tokenizers::Result<tokenizers::Tokenizer> {
        // If two roles share a token, the matching rules of the later role apply.
        let special: BTreeMap<String, AddedToken> =
            self.special.iter().map(|token| (token.content.clone(), token.clone())).collect();
        let [_, _, unknown, _] = self.special;
        let model = BPE::builder()
            .vocab_and_merges(self.vocab.into_iter().collect::<Vocab>(), self.merges)
            .end_of_word_suffix("</w>".to_owned())
            .unk_token(unknown.content)
            .build()?;
        let mut pipeline = tokenizers::Tokenizer::new(model);
        pipeline.with_normalizer(Some(normalizers()?))?;
        pipeline.with_pre_tokenizer(Some(pre_tokenizers()?));
        pipeline.add_special_tokens(special.into_values())?;
        Ok(pipeline)
    }
}

fn normalizers() -> tokenizers::Result<Normalizers> {
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    let steps: Vec<NormalizerWrapper> = vec![NFC.into(), spaces.into(), Lowercase.into()];
    Ok(Normalizers::new(steps))
}

fn pre_tokenizers() -> tokenizers::Result<PreTokenizers> {
    let words = Split::new(SplitPattern::Regex(WORDS.to_owned()), SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::default().add_prefix_space(false);
    Ok(PreTokenizers::new(vec![words.into(), bytes.into()]))
}
