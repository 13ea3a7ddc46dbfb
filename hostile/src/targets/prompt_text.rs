//! A prompt or caption as typed. The first line of an input is the trigger.

use std::sync::LazyLock;

use catelier_testkit::golden::Golden;
use catelier_workflows::prompts::template::{self, Values};
use catelier_workflows::prompts::{Tokenizer, Trigger};

use crate::{Verdict, refused};

/// The tokenizers of SD 1, of SD 2 with its pad token `!`, and of SDXL.
static TOKENIZERS: LazyLock<[Tokenizer; 3]> = LazyLock::new(|| {
    let golden = Golden::open();
    ["tiny-sd1/tokenizer", "tiny-sd2/tokenizer", "tiny-sdxl/tokenizer_2"]
        .map(|folder| Tokenizer::from_folder(&golden.model(folder)).unwrap())
});

pub(super) fn read(input: &[u8]) -> Verdict {
    let input = String::from_utf8_lossy(input);
    let (word, text) = input.split_once('\n').unwrap_or(("shs", &input));
    for tokenizer in &*TOKENIZERS {
        tokenize(tokenizer, text);
    }
    if let Err(error) = template::render(text, Values { trigger: Some(word), class: Some("owl") }) {
        refused(&error);
    }
    match Trigger::new(word) {
        Ok(trigger) => {
            assert!(trigger.is_in(&trigger.insert(text).caption), "`{word}` is not in the caption with it: `{text}`");
            assert!(!trigger.is_in(&trigger.remove(text)), "`{word}` is left in `{text}`");
            Verdict::Accepted
        }
        Err(error) => refused(&error),
    }
}

/// Whatever the text is, its ids are those of the vocabulary, or it is refused.
pub(super) fn tokenize(tokenizer: &Tokenizer, text: &str) {
    match tokenizer.encode(text) {
        Ok(tokens) => {
            assert_eq!(tokens.ids.len(), tokenizer.max_length());
            assert!((2..=tokens.ids.len()).contains(&tokens.used), "{tokens:?}");
            assert!(tokens.ids.iter().all(|id| (*id as usize) < tokenizer.vocabulary()), "{tokens:?}");
        }
        Err(error) => drop(refused(&error)),
    }
}
