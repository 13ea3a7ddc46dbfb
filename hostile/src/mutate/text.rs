//! Mutations of text of any grammar: numbers, lines, keys, nesting.

use std::ops::Range;

use fastrand::Rng;

use super::boundary;

/// Texts that readers stumble over.
const ODD: &[&str] = &[
    "null",
    "true",
    "NaN",
    "Infinity",
    "\"\"",
    "[]",
    "{}",
    "\u{feff}",
    "\u{0}",
    "\u{1b}[31m",
    "\u{202e}",
    "é",
    "e\u{301}",
    "🦀",
    "../",
    "/",
    "\\",
    "{trigger}",
    "{class",
    "[trigger]",
    "}}",
    "\r\n",
    "\u{2028}",
    "[[x]]\n",
    "= ",
    "# ",
    "''' ",
    "'",
    "<|startoftext|>",
    "<|endoftext|>",
    "\\ud800",
    "-",
];

/// Mutates text in place; `false` if the input is none.
pub(super) fn mutate(rng: &mut Rng, input: &mut Vec<u8>) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let changed = match rng.u8(..8) {
        0..=2 => number(rng, text),
        3 => line(rng, text),
        4 => nest(rng, text),
        5 => duplicate_key(rng, text),
        6 => long(rng, text),
        _ => Some(insert(text, place(rng, text), ODD[rng.usize(..ODD.len())])),
    };
    if let Some(text) = changed {
        *input = text.into_bytes();
        return true;
    }
    false
}

/// A boundary in place of a number.
fn number(rng: &mut Rng, text: &str) -> Option<String> {
    let numbers = runs(text, |byte| byte.is_ascii_digit());
    let range = numbers.get(rng.usize(..numbers.len().max(1)))?.clone();
    Some(format!("{}{}{}", &text[..range.start], boundary(rng), &text[range.end..]))
}

/// A line twice, away, or before another.
fn line(rng: &mut Rng, text: &str) -> Option<String> {
    let mut lines: Vec<&str> = text.lines().collect();
    let from = rng.usize(..lines.len().max(1));
    let line = *lines.get(from)?;
    if rng.bool() {
        lines.remove(from);
    }
    if rng.bool() {
        lines.insert(rng.usize(..=lines.len()), line);
    }
    Some(lines.join("\n"))
}

/// Many brackets.
fn nest(rng: &mut Rng, text: &str) -> Option<String> {
    let (open, close) = [("[", "]"), ("{\"a\":", "}"), ("(", ")"), ("{", "}")][rng.usize(..4)];
    let depth = [3, 100, 127, 128, 129, 1000, 20_000][rng.usize(..7)];
    let closing = if rng.bool() { close.repeat(depth) } else { String::new() };
    Some(insert(text, place(rng, text), &(open.repeat(depth) + "1" + &closing)))
}

/// `"key":` once more, with a number.
fn duplicate_key(rng: &mut Rng, text: &str) -> Option<String> {
    let colons: Vec<usize> = text.match_indices("\":").map(|(at, _)| at).collect();
    let colon = *colons.get(rng.usize(..colons.len().max(1)))?;
    let start = text[..colon].rfind('"')?;
    let twice = format!("{}:{},", &text[start..=colon], boundary(rng));
    Some(insert(text, start, &twice))
}

/// A long run of one letter, or of one word.
fn long(rng: &mut Rng, text: &str) -> Option<String> {
    let piece = ["a", "a ", "\u{1f980}", "\n", "é", "a,", "0"][rng.usize(..7)];
    Some(insert(text, place(rng, text), &piece.repeat([80, 300, 5000][rng.usize(..3)])))
}

fn insert(text: &str, at: usize, what: &str) -> String {
    format!("{}{what}{}", &text[..at], &text[at..])
}

fn place(rng: &mut Rng, text: &str) -> usize {
    text.floor_char_boundary(rng.usize(..=text.len()))
}

/// Longest runs of bytes of one kind.
fn runs(text: &str, kind: impl Fn(u8) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (at, _) in text.bytes().enumerate().filter(|(_, byte)| kind(*byte)) {
        match runs.last_mut() {
            Some(run) if run.end == at => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}
