//! What people read, on stderr, and data, on stdout. Everything goes through here, so that no text from a file can speak
//! to the terminal, and no stream that is closed or full can end the work.

use std::borrow::Cow;
use std::io::{ErrorKind, Write};

use catelier_workflows::error::chain;
use catelier_workflows::{Context, Error};
use serde::Serialize;

use crate::failure::Outcome;
use crate::progress;

/// One line for a person.
pub(crate) fn say(line: &str) {
    let line = format!("{}\n", escaped(line));
    // Nobody may be listening any more, and there is nobody else to tell.
    progress::above_bars(|| drop(std::io::stderr().write_all(line.as_bytes())));
}

/// A fact that a person may want to act on.
pub(crate) fn warn(line: &str) {
    say(&format!("warning: {line}"));
}

/// The chain of an error, outermost first, and its hint.
pub(crate) fn error(error: &Error) {
    let mut chain: Vec<String> = chain(error).map(ToString::to_string).collect();
    // Transparent wrappers repeat their cause word for word.
    chain.dedup();
    say(&format!("error: {}", chain[0]));
    for cause in &chain[1..] {
        say(&format!("cause: {cause}"));
    }
    if let Some(hint) = error.hint() {
        say(&format!("hint: {hint}"));
    }
}

/// Clap's answer to a command line: help and the version on stdout, mistakes on stderr.
pub(crate) fn usage(answer: &clap::Error) -> Outcome<()> {
    // A mistake is repeated as it was typed, or as a script passed it on; clap's colours cannot be told from it.
    if std::env::args_os().any(|argument| argument.to_string_lossy().contains(is_unprintable)) {
        answer.render().to_string().lines().for_each(say);
        return Ok(());
    }
    match answer.print() {
        Err(error) if !answer.use_stderr() => unless_closed(Err(error)),
        _ => Ok(()),
    }
}

/// Data for a program: one line of JSON on stdout.
pub(crate) fn json(value: &impl Serialize) -> Outcome<()> {
    // Strings in JSON have no control characters, and bidirectional ones are harmless to a program.
    print(&serde_json::to_string(value).failed("cannot write JSON")?)
}

/// One line of data on stdout.
pub(crate) fn data(line: &str) -> Outcome<()> {
    print(&escaped(line))
}

/// Lines of data on stdout.
pub(crate) fn lines(lines: impl IntoIterator<Item = impl AsRef<str>>) -> Outcome<()> {
    lines.into_iter().try_for_each(|line| data(line.as_ref()))
}

fn print(line: &str) -> Outcome<()> {
    let mut stdout = std::io::stdout().lock();
    unless_closed(writeln!(stdout, "{line}").and_then(|()| stdout.flush()))
}

/// A reader that went away wants no more; what else the command does is done all the same.
fn unless_closed(written: std::io::Result<()>) -> Outcome<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written.failed("cannot write to stdout")?),
    }
}

/// The text with every character escaped that could move the cursor, start a sequence or turn the direction of writing;
/// a line break is one of them.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match is_unprintable(character) {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown.into()
}

/// Whether a terminal could do something else with a character than show it.
pub(crate) fn is_unprintable(character: char) -> bool {
    character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        let cases = [
            ("\x1b[2J\x07", "\\u{1b}[2J\\u{7}"),
            ("two\nlines\r\tand a tab", "two\\nlines\\r\\tand a tab"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("gnp.\u{202e}cod\u{2066}", "gnp.\\u{202e}cod\\u{2066}"),
        ];
        for (text, shown) in cases {
            assert_eq!(escaped(text), shown);
        }
    }

    #[test]
    fn what_is_only_text_stays_as_it_is() {
        let text = "a red house, ein Häuschen, 赤い家, بيت, C:\\art, \"1 × 2 … 3\", \u{1f3e0}";
        assert_eq!(escaped(text), text);
    }
}
