//! Whole-word matches in a caption, found in the text as the tokenizer sees it.

use std::ops::Range;

use tokenizers::NormalizedString;
use tokenizers::tokenizer::normalizer::Range as In;

/// The text in NFC and lower case, aligned with the text as written.
pub(super) fn as_seen(text: &str) -> NormalizedString {
    let mut seen = NormalizedString::from(text);
    seen.nfc().lowercase();
    seen
}

/// Byte ranges in `caption` of every whole `trigger` (given as the tokenizer sees it), in order, not overlapping.
pub(super) fn spans(caption: &str, trigger: &str) -> Vec<Range<usize>> {
    let aligned = as_seen(caption);
    let seen = aligned.get();
    let mut spans = Vec::new();
    let mut at = 0;
    while let Some(next) = seen[at..].chars().next() {
        match match_length(&seen[at..], trigger) {
            Some(length) if is_whole(seen, trigger, at..at + length) => {
                spans.push(written(&aligned, at..at + length));
                at += length;
            }
            _ => at += next.len_utf8(),
        }
    }
    spans
}

/// Number of bytes at the start of `text` that match `trigger`, whose spaces match any whitespace.
fn match_length(text: &str, trigger: &str) -> Option<usize> {
    let mut words = trigger.split(' ');
    let mut rest = text.strip_prefix(words.next()?)?;
    for word in words {
        let trimmed = rest.trim_start();
        if trimmed.len() == rest.len() {
            return None;
        }
        rest = trimmed.strip_prefix(word)?;
    }
    Some(text.len() - rest.len())
}

/// Whether a match is whole: a letter or digit at an edge of the trigger does not continue in the text around it.
fn is_whole(seen: &str, trigger: &str, span: Range<usize>) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let before = seen[..span.start].chars().next_back();
    let after = seen[span.end..].chars().next();
    let continues_before = is_word(before) && is_word(trigger.chars().next());
    let continues_after = is_word(after) && is_word(trigger.chars().next_back());
    !continues_before && !continues_after
}

/// The range in the text as written of a range in the normalised text.
fn written(aligned: &NormalizedString, span: Range<usize>) -> Range<usize> {
    let start_of = |at: usize| {
        let character = aligned.get()[at..].chars().next()?;
        let range = aligned.convert_offsets(In::Normalized(at..at + character.len_utf8()))?;
        Some(range.start)
    };
    // The end is where the next character starts: a composed letter is aligned with the first of its parts only.
    let end = aligned.len_original();
    start_of(span.start).unwrap_or(0)..start_of(span.end).unwrap_or(end)
}
