//! CLIP's byte-pair tokenizer, read from the folders that diffusers pipelines carry.
//!
//! The text is normalised to NFC, runs of whitespace become one space, and letters become lower case. Words, single
//! digits and runs of punctuation are then split into byte pairs; the last pair of each ends in `</w>` (Radford et al.
//! 2021, as in transformers' `CLIPTokenizer`). Special tokens are found first: with Stable Diffusion 2's pad token `!`,
//! every exclamation mark of a prompt becomes the pad token, in transformers too.

mod clip;
mod files;

use std::fmt;
use std::io;
use std::path::Path;

use crate::bounded;
use crate::{Error, Result};
use clip::SpecialIds;
use files::{LARGEST_FILE, TokenizerFiles};

/// A text as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Start token, text, end token, then pad tokens up to [`Tokenizer::max_length`].
    pub ids: Vec<u32>,
    /// Number of ids before the padding, start and end token included.
    pub used: usize,
    /// The end of the text, as written, if the text was cut; `None` if all of it fits.
    pub dropped: Option<String>,
}

/// CLIP's byte-pair tokenizer with the length and the pad token of one text encoder.
pub struct Tokenizer {
    pieces: tokenizers::Tokenizer,
    special: SpecialIds,
    max_length: usize,
    /// The highest id and one.
    vocabulary: usize,
}

impl Tokenizer {
    /// Reads a tokenizer folder: `vocab.json` and `merges.txt` (or `tokenizer.json`), and where present
    /// `tokenizer_config.json` and `special_tokens_map.json`.
    ///
    /// # Errors
    /// [`Error::TokenizerFileMissing`], [`Error::Read`], [`Error::TokenizerFileBroken`],
    /// [`Error::SpecialTokenUnknown`].
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let read = |file: &str| match bounded::read(&folder.join(file), LARGEST_FILE) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path: folder.join(file), source }),
        };
        Self::from_files(&folder.display().to_string(), read)
    }

    /// Reads the same files through `read`, which returns a file's bytes, or `None` if there is no such file. Errors
    /// name the store `place`.
    ///
    /// # Errors
    /// Any error of `read`; also as [`Tokenizer::from_folder`].
    pub fn from_files(place: &str, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        TokenizerFiles::read(place, read)?.build()
    }

    /// Builds the tokenizer from the bytes of `vocab.json`, `merges.txt`, and where present `tokenizer_config.json` and
    /// `special_tokens_map.json`.
    ///
    /// # Errors
    /// [`Error::TokenizerFileBroken`], [`Error::SpecialTokenUnknown`].
    pub fn from_bytes(
        vocab: &[u8],
        merges: &[u8],
        config: Option<&[u8]>,
        special_tokens_map: Option<&[u8]>,
    ) -> Result<Self> {
        TokenizerFiles::from_bytes(vocab, merges, config, special_tokens_map)?.build()
    }

    /// The text as `max_length` ids. The end of a text that is too long is dropped; the end token stays.
    ///
    /// # Errors
    /// [`Error::Tokenize`] if the vocabulary cannot spell the text; a byte-level vocabulary spells every text.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        let pieces = self
            .pieces
            .encode(text, false)
            .map_err(|error| Error::Tokenize { text: text.to_owned(), reason: error.to_string() })?;
        let room = self.max_length - 2;
        let kept = pieces.len().min(room);
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.special.start);
        ids.extend_from_slice(&pieces.get_ids()[..kept]);
        ids.push(self.special.end);
        let used = ids.len();
        ids.resize(self.max_length, self.special.pad);
        let dropped = pieces.get_offsets().get(room).map(|offsets| {
            let start = text.floor_char_boundary(offsets.0);
            text[start..].trim().to_owned()
        });
        Ok(Tokens { ids, used, dropped })
    }

    /// Number of ids of every encoded text, start and end token included; 77 for Stable Diffusion.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Every id is below this number, and the highest is one less; the number of entries of most vocabularies.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The id of the start token.
    pub fn start_id(&self) -> u32 {
        self.special.start
    }

    /// The id of the end token.
    pub fn end_id(&self) -> u32 {
        self.special.end
    }

    /// The id of the pad token.
    pub fn pad_id(&self) -> u32 {
        self.special.pad
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary", &self.vocabulary())
            .field("max_length", &self.max_length)
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}
