//! What people read: everything here goes to stderr; stdout is for data.
#![expect(clippy::print_stderr, reason = "the one place that prints")]

use std::io::Write;

use catelier_workflows::error::chain;
use catelier_workflows::{Context, Error};
use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// One line for a person.
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// A fact that a person may want to act on.
pub(crate) fn warn(line: &str) {
    eprintln!("warning: {line}");
}

/// The chain of an error, outermost first, and its hint.
pub(crate) fn error(error: &Error) {
    let mut chain: Vec<String> = chain(error).map(ToString::to_string).collect();
    // Transparent wrappers repeat their cause word for word.
    chain.dedup();
    eprintln!("error: {}", chain[0]);
    for cause in &chain[1..] {
        eprintln!("cause: {cause}");
    }
    if let Some(hint) = error.hint() {
        eprintln!("hint: {hint}");
    }
}

/// Data for a program: one line of JSON on stdout.
pub(crate) fn json(value: &impl Serialize) -> Outcome<()> {
    data(&serde_json::to_string(value).failed("cannot write JSON")?)
}

/// Data on stdout.
pub(crate) fn data(text: &str) -> Outcome<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::BrokenPipe),
        written => Ok(written.failed("cannot write to stdout")?),
    }
}
