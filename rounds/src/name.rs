//! Names of clients, which are names of files too.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Most characters of a name.
const LONGEST: usize = 64;

/// The name of a client: 1–64 characters of `a–z`, `0–9`, `-` and `_`. It is one name of a file on every system, and no
/// two names differ in case alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientName(String);

impl ClientName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClientName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        match (1..=LONGEST).contains(&name.len()) && name.bytes().all(is_plain) {
            true => Ok(Self(name.to_owned())),
            false => Err(Error::Name { name: shortened(name) }),
        }
    }
}

/// A name as a message shows it: a long one is cut.
pub(crate) fn shortened(name: &str) -> String {
    const SHOWN: usize = 80;
    cut(name.to_owned(), SHOWN)
}

/// A text of `most` characters, or its beginning and its size.
pub(crate) fn cut(text: String, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

impl TryFrom<String> for ClientName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<ClientName> for String {
    fn from(name: ClientName) -> Self {
        name.0
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_short() {
        for name in ["a", "ada", "ada-2", "_", "0", &"x".repeat(64)] {
            assert_eq!(name.parse::<ClientName>().unwrap().as_str(), name);
        }
        let long = "x".repeat(300);
        for name in ["", "Ada", "a/b", "..", ".", "a.b", "a b", "a\n", "a\0", "ä", "a\u{202e}", &"x".repeat(65), &long]
        {
            let error = name.parse::<ClientName>().unwrap_err();
            assert!(error.to_string().contains("1 to 64"), "{error}");
            assert!(error.to_string().len() < 250);
        }
    }
}
