//! The files of a tokenizer folder, parsed into plain values.

use std::collections::HashMap;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::bounded::{self, AtMost};
use crate::{Error, Result};

const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const WHOLE: &str = "tokenizer.json";

/// CLIP's length in tokens, for folders without a length.
const CLIP_LENGTH: usize = 77;

/// Longest length that is believed: folders saved without a length have an astronomically large one instead.
const LONGEST_STATED_LENGTH: f64 = 65_536.0;

/// Largest file of a tokenizer.
pub(super) const LARGEST_FILE: u64 = 16 << 20;

/// Most pieces, and most merges; CLIP has 49,408.
const MOST_PIECES: usize = 1 << 17;

/// `vocab.json`, or the vocabulary in `tokenizer.json`: the id of every piece.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Vocabulary(#[serde(deserialize_with = "bounded::map::<_, _, MOST_PIECES>")] HashMap<String, u32>);

/// The four roles of special tokens, in the order in which transformers registers them.
pub(super) const ROLES: [(&str, &str, &str); 4] = [
    ("start", "bos_token", "<|startoftext|>"),
    ("end", "eos_token", "<|endoftext|>"),
    ("unknown", "unk_token", "<|endoftext|>"),
    ("pad", "pad_token", "<|endoftext|>"),
];

/// The values of a tokenizer folder.
pub(super) struct TokenizerFiles {
    pub(super) vocab: HashMap<String, u32>,
    pub(super) merges: Vec<(String, String)>,
    /// One token for each of [`ROLES`].
    pub(super) special: [AddedToken; 4],
    pub(super) max_length: usize,
}

impl TokenizerFiles {
    pub(super) fn read(place: &str, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let config = read(CONFIG)?;
        let special = read(SPECIAL_TOKENS)?;
        let (config, special) = (config.as_deref(), special.as_deref());
        match (read(VOCAB)?, read(MERGES)?) {
            (Some(vocab), Some(merges)) => Self::from_bytes(&vocab, &merges, config, special),
            (vocab, _) => match read(WHOLE)? {
                Some(whole) => Self::from_whole(&whole, config, special),
                None => Err(Error::TokenizerFileMissing {
                    file: if vocab.is_none() { VOCAB } else { MERGES },
                    place: place.to_owned(),
                }),
            },
        }
    }

    pub(super) fn from_bytes(
        vocab: &[u8],
        merges: &[u8],
        config: Option<&[u8]>,
        special_tokens_map: Option<&[u8]>,
    ) -> Result<Self> {
        Self::assemble(json(VOCAB, vocab)?, parse_merges(merges)?, config, special_tokens_map)
    }

    /// `tokenizer.json` holds vocabulary and merges in one file; its other settings are CLIP's own.
    fn from_whole(whole: &[u8], config: Option<&[u8]>, special_tokens_map: Option<&[u8]>) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Whole {
            model: Model,
        }
        #[derive(serde::Deserialize)]
        struct Model {
            vocab: Vocabulary,
            merges: AtMost<Merge, MOST_PIECES>,
        }
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Merge {
            Pair(String, String),
            Line(String),
        }
        let whole: Whole = json(WHOLE, whole)?;
        let merges = whole.model.merges.0.into_iter().map(|merge| match merge {
            Merge::Pair(left, right) => Ok((left, right)),
            Merge::Line(line) => {
                split_merge(&line).ok_or_else(|| broken(WHOLE, format!("`{line}` is not a pair of pieces")))
            }
        });
        let merges = merges.collect::<Result<_>>()?;
        Self::assemble(whole.model.vocab, merges, config, special_tokens_map)
    }

    fn assemble(
        vocab: Vocabulary,
        merges: Vec<(String, String)>,
        config: Option<&[u8]>,
        special_tokens_map: Option<&[u8]>,
    ) -> Result<Self> {
        let config: Map<String, Value> = optional_json(CONFIG, config)?;
        let mut special: Map<String, Value> = optional_json(SPECIAL_TOKENS, special_tokens_map)?;
        // Older folders keep the true pad token in the map; newer ones (with `added_tokens_decoder`) in the config.
        if config.contains_key("added_tokens_decoder") {
            special.clear();
        }
        Ok(Self {
            special: special_tokens(&config, &special)?,
            max_length: max_length(&config)?,
            vocab: vocab.0,
            merges,
        })
    }
}

fn special_tokens(config: &Map<String, Value>, map: &Map<String, Value>) -> Result<[AddedToken; 4]> {
    let mut tokens = ROLES.map(|(_, _, default)| AddedToken::from(default, true));
    for (token, (_, key, _)) in tokens.iter_mut().zip(ROLES) {
        let stated = [(SPECIAL_TOKENS, map), (CONFIG, config)]
            .into_iter()
            .find_map(|(file, values)| Some((file, values.get(key).filter(|value| !value.is_null())?)));
        if let Some((file, value)) = stated {
            *token =
                special_token(value).ok_or_else(|| broken(file, format!("`{key}` is neither text nor a token")))?;
        }
    }
    Ok(tokens)
}

/// A token is written as plain text, or as an object with its matching rules.
fn special_token(value: &Value) -> Option<AddedToken> {
    if let Value::String(content) = value {
        return Some(AddedToken::from(content.as_str(), true));
    }
    let flag = |name| value.get(name).and_then(Value::as_bool).unwrap_or(false);
    let token = AddedToken::from(value.get("content")?.as_str()?, true);
    Some(
        token
            .normalized(flag("normalized"))
            .single_word(flag("single_word"))
            .lstrip(flag("lstrip"))
            .rstrip(flag("rstrip")),
    )
}

fn max_length(config: &Map<String, Value>) -> Result<usize> {
    let Some(stated) = config.get("model_max_length").filter(|value| !value.is_null()) else {
        return Ok(CLIP_LENGTH);
    };
    match stated.as_f64() {
        Some(length) if length > LONGEST_STATED_LENGTH => Ok(CLIP_LENGTH),
        Some(length) if length >= 3.0 && length.fract() == 0.0 => Ok(length as usize),
        _ => Err(broken(CONFIG, format!("`model_max_length` is {stated}, expected a whole number of at least 3"))),
    }
}

fn parse_merges(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let text = std::str::from_utf8(bytes).map_err(|error| broken(MERGES, error.to_string()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with("#version"));
    if lines.clone().nth(MOST_PIECES).is_some() {
        return Err(broken(MERGES, format!("expected at most {MOST_PIECES} merges, found more")));
    }
    lines
        .map(|(index, line)| {
            split_merge(line)
                .ok_or_else(|| broken(MERGES, format!("line {} is not a pair of pieces: `{line}`", index + 1)))
        })
        .collect()
}

fn split_merge(line: &str) -> Option<(String, String)> {
    let (left, right) = line.trim_end().split_once(' ')?;
    let is_piece = |piece: &str| !piece.is_empty() && !piece.contains(' ');
    (is_piece(left) && is_piece(right)).then(|| (left.to_owned(), right.to_owned()))
}

fn optional_json(file: &'static str, bytes: Option<&[u8]>) -> Result<Map<String, Value>> {
    bytes.map_or_else(|| Ok(Map::new()), |bytes| json(file, bytes))
}

fn json<T: serde::de::DeserializeOwned>(file: &'static str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| broken(file, error.to_string()))
}

pub(super) fn broken(file: &'static str, reason: String) -> Error {
    Error::TokenizerFileBroken { file, reason }
}
