//! Checks a configuration file against a table of its keys before anything is made from it.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::files::{ModelFiles, UnsupportedSetting};

/// The values that a key may have. A missing key takes the library's default, which every rule allows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// A whole number from the first to the second.
    Whole(u64, u64),
    /// A number from the first to the second.
    Real(f64, f64),
    /// True or false.
    Flag,
    /// Any text.
    Text,
    /// One of these JSON values, the first of which is the default: others would change results.
    OneOf(&'static [&'static str]),
    /// Null, or a value of the rule.
    OrNull(&'static Rule),
    /// A list of 1 to this many values of the rule.
    List(usize, &'static Rule),
    /// One value of the rule for all levels, or a list with one for each.
    PerLevel(&'static Rule),
    /// Any value: the key does not change results.
    Irrelevant,
}

/// The keys of a configuration file that its library knows, with the values that these models support.
pub(crate) type Table = [(&'static str, Rule)];

/// Most levels of a network.
pub(crate) const MOST_LEVELS: usize = 8;

impl Rule {
    fn allows(&self, value: &Value) -> bool {
        let list_of = |rule: &Rule, most| {
            let entries = value.as_array().filter(|entries| (1..=most).contains(&entries.len()));
            entries.is_some_and(|entries| entries.iter().all(|entry| rule.allows(entry)))
        };
        match self {
            Self::Whole(least, most) => value.as_u64().is_some_and(|number| (*least..=*most).contains(&number)),
            Self::Real(least, most) => value.as_f64().is_some_and(|number| (*least..=*most).contains(&number)),
            Self::Flag => value.is_boolean(),
            Self::Text => value.is_string(),
            Self::OneOf(supported) => supported.iter().any(|supported| same(value, supported)),
            Self::OrNull(rule) => value.is_null() || rule.allows(value),
            Self::List(most, rule) => list_of(rule, *most),
            Self::PerLevel(rule) => rule.allows(value) || list_of(rule, MOST_LEVELS),
            Self::Irrelevant => true,
        }
    }

    /// The allowed values in words.
    fn describe(&self) -> String {
        match self {
            Self::Whole(least, most) => format!("a whole number from {least} to {most}"),
            Self::Real(least, most) => format!("a number from {least:?} to {most:?}"),
            Self::Flag => "true or false".into(),
            Self::Text => "a text".into(),
            Self::OneOf(supported) => supported.join(" or "),
            Self::OrNull(rule) => format!("null or {}", rule.describe()),
            Self::List(most, rule) => format!("a list of 1 to {most} values, each {}", rule.describe()),
            Self::PerLevel(rule) => format!("{}, or a list of these for 1 to {MOST_LEVELS} levels", rule.describe()),
            Self::Irrelevant => "anything".into(),
        }
    }
}

/// Whether `value` equals the JSON `text`; numbers are compared by value, so 1 equals 1.0.
fn same(value: &Value, text: &str) -> bool {
    let Ok(expected) = serde_json::from_str::<Value>(text) else { return false };
    match (value.as_f64(), expected.as_f64()) {
        (Some(value), Some(expected)) => value == expected,
        _ => *value == expected,
    }
}

/// A configuration file during the check; refusals are collected and reported together.
pub(crate) struct Check {
    path: String,
    file: Value,
    refused: Vec<UnsupportedSetting>,
}

impl Check {
    /// Reads the file at `path` and refuses each key whose value `table` does not allow.
    ///
    /// # Errors
    /// Those of [`ModelFiles::config`].
    pub(crate) fn new(path: &str, files: &ModelFiles, table: &Table) -> Result<Self> {
        let mut check = Self { path: path.into(), file: files.config(path)?, refused: Vec::new() };
        for (key, rule) in table {
            let refused = check.file.get(key).filter(|value| !rule.allows(value)).map(Value::to_string);
            if let Some(value) = refused {
                check.refuse(key, value, rule.describe());
            }
        }
        Ok(check)
    }

    /// Refuses `key`; of several reasons for one key, the first is told.
    pub(crate) fn refuse(&mut self, key: &str, value: impl ToString, supported: impl ToString) {
        if self.refused.iter().any(|refused| refused.key == key) {
            return;
        }
        let (value, supported) = (shortened(value.to_string()), supported.to_string());
        self.refused.push(UnsupportedSetting { key: key.into(), value, supported });
    }

    pub(crate) fn expand(&mut self, key: &str, value: &PerLevel, levels: usize) -> Vec<usize> {
        match value {
            PerLevel::One(value) => vec![*value; levels],
            PerLevel::Each(values) if values.len() == levels => values.clone(),
            PerLevel::Each(values) => {
                let supported = format!("one number, or {levels}: one for each of `block_out_channels`");
                self.refuse(key, format!("{values:?}"), supported);
                vec![1; levels]
            }
        }
    }

    /// Refuses the list `key` unless it has one entry for each level.
    pub(crate) fn count(&mut self, key: &str, found: usize, levels: usize) {
        if found != levels {
            self.refuse(key, format!("{found} entries"), "one for each of `block_out_channels`");
        }
    }

    /// Number of entries of the list `key`, if the file has it.
    pub(crate) fn length(&self, key: &str) -> Option<usize> {
        self.file.get(key)?.as_array().map(Vec::len)
    }

    pub(crate) fn divides(&mut self, key: &str, divisor: usize, width: usize) {
        if !width.is_multiple_of(divisor) {
            self.refuse(key, divisor, format!("a divisor of {width}"));
        }
    }

    /// The file as a `T`.
    ///
    /// # Errors
    /// [`Error::UnsupportedSettings`] if a refused value is none of its type, else [`Error::InvalidConfig`].
    pub(crate) fn parse<T: DeserializeOwned>(&mut self) -> Result<T> {
        T::deserialize(&self.file).or_else(|source| {
            self.finish()?;
            Err(Error::InvalidConfig { path: self.path.clone(), source })
        })
    }

    /// # Errors
    /// [`Error::UnsupportedSettings`] with everything that was refused.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if self.refused.is_empty() {
            return Ok(());
        }
        Err(Error::UnsupportedSettings { path: self.path.clone(), settings: std::mem::take(&mut self.refused) })
    }
}

/// A value for a message: its beginning if it is long.
fn shortened(value: String) -> String {
    const SHOWN: usize = 80;
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value,
    }
}

/// One number for all levels of a network, or one per level.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum PerLevel {
    One(usize),
    Each(Vec<usize>),
}
