//! Removal of a word from a sentence, with the signs around it.

use std::ops::Range;

/// Signs that stand around a word in pairs.
const PAIRS: [(char, char); 10] = [
    ('<', '>'),
    ('(', ')'),
    ('[', ']'),
    ('{', '}'),
    ('"', '"'),
    ('\'', '\''),
    ('`', '`'),
    ('“', '”'),
    ('‘', '’'),
    ('«', '»'),
];

/// Signs that join two words.
const JOINERS: [char; 2] = ['-', '_'];

/// Signs between parts of a sentence.
const SEPARATORS: [char; 7] = [',', ';', ':', '|', '-', '–', '—'];

/// Signs at the end of a sentence.
const STOPS: [char; 3] = ['.', '!', '?'];

/// `text` without `span` and without the signs that belong to `span` alone.
pub(super) fn without(text: &str, span: Range<usize>) -> String {
    let span = with_possessive(text, span);
    let span = with_brackets(text, span);
    let span = with_joiner(text, span);
    close_gap(&text[..span.start], &text[span.end..])
}

/// `text` without separators and whitespace around it.
pub(super) fn trim_separators(text: &str) -> &str {
    text.trim_matches(is_gap)
}

/// The span with a following `'s`.
fn with_possessive(text: &str, span: Range<usize>) -> Range<usize> {
    let after = &text[span.end..];
    for suffix in ["'s", "’s", "'S", "’S"] {
        let ends_word = |rest: &str| !rest.starts_with(char::is_alphanumeric);
        if after.strip_prefix(suffix).is_some_and(ends_word) {
            return span.start..span.end + suffix.len();
        }
    }
    span
}

/// The span with the brackets and quotes that hold nothing else.
fn with_brackets(text: &str, span: Range<usize>) -> Range<usize> {
    let before = text[..span.start].trim_end();
    let after = text[span.end..].trim_start();
    let around = before.chars().next_back().zip(after.chars().next());
    match around {
        Some((open, close)) if PAIRS.contains(&(open, close)) => {
            let start = before.len() - open.len_utf8();
            let end = text.len() - after.len() + close.len_utf8();
            with_brackets(text, start..end)
        }
        _ => span,
    }
}

/// The span with one hyphen or underscore that joined the word to a neighbour; between two neighbours one is kept.
fn with_joiner(text: &str, span: Range<usize>) -> Range<usize> {
    if let Some(rest) = text[span.end..].strip_prefix(JOINERS)
        && rest.starts_with(char::is_alphanumeric)
    {
        return span.start..text.len() - rest.len();
    }
    if let Some(rest) = text[..span.start].strip_suffix(JOINERS)
        && rest.ends_with(char::is_alphanumeric)
    {
        return rest.len()..span.end;
    }
    span
}

/// Joins the texts before and after a gap with the punctuation and the space that a reader expects.
fn close_gap(left: &str, right: &str) -> String {
    let spaced = left.ends_with(char::is_whitespace) || right.starts_with(char::is_whitespace);
    let (mut left, mut right) = (left.trim(), right.trim());
    if left.is_empty() {
        return start_of_sentence(right).to_owned();
    }
    if right.is_empty() {
        return left.trim_end_matches(is_gap).to_owned();
    }
    let mut spaced = spaced;
    if right.starts_with(STOPS) {
        if left.ends_with(STOPS) {
            right = right.trim_start_matches(STOPS);
        } else {
            left = left.trim_end_matches(is_gap);
        }
        return join(left, right, false);
    }
    if left.ends_with(SEPARATORS) || left.ends_with(STOPS) {
        let trimmed = right.trim_start_matches(is_gap);
        spaced |= trimmed.len() < right.len() && right[..right.len() - trimmed.len()].contains(' ');
        right = trimmed;
    }
    join(left, right, spaced)
}

fn start_of_sentence(text: &str) -> &str {
    text.trim_start_matches(|c: char| is_gap(c) || STOPS.contains(&c))
}

fn is_gap(c: char) -> bool {
    c.is_whitespace() || SEPARATORS.contains(&c)
}

fn join(left: &str, right: &str, spaced: bool) -> String {
    let opens = PAIRS.iter().take(4).any(|(open, _)| left.ends_with(*open));
    let closes = PAIRS.iter().take(4).any(|(_, close)| right.starts_with(*close));
    let tight = opens || closes || right.is_empty() || right.starts_with([',', ';', ':']);
    let space = if spaced && !tight { " " } else { "" };
    format!("{left}{space}{right}")
}
