//! Refuses settings of a configuration that these models do not support, by name.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::files::{ModelFiles, UnsupportedSetting};

/// A configuration file during the check; refusals are collected and reported together.
pub(super) struct Check {
    path: String,
    file: Value,
    refused: Vec<UnsupportedSetting>,
}

impl Check {
    pub(super) fn new(path: &str, files: &ModelFiles) -> Result<Self> {
        Ok(Self { path: path.into(), file: files.json(path)?, refused: Vec::new() })
    }

    pub(super) fn refuse(&mut self, key: &str, value: impl ToString, supported: impl ToString) {
        let (value, supported) = (value.to_string(), supported.to_string());
        self.refused.push(UnsupportedSetting { key: key.into(), value, supported });
    }

    /// Refuses every key that is present with a value other than the listed ones.
    pub(super) fn fixed(&mut self, table: &[(&str, &[&str])]) {
        for (key, supported) in table {
            let Some(value) = self.file.get(key).cloned() else { continue };
            if !supported.iter().any(|supported| same(&value, supported)) {
                self.refuse(key, value, supported.join(" or "));
            }
        }
    }

    /// Refuses the list `key` if an entry is not one of `supported`.
    pub(super) fn every(&mut self, key: &str, supported: &[&str]) {
        let Some(Value::Array(entries)) = self.file.get(key).cloned() else { return };
        for entry in entries {
            if !entry.as_str().is_some_and(|entry| supported.contains(&entry)) {
                self.refuse(key, entry, supported.join(" and "));
            }
        }
    }

    pub(super) fn expand(&mut self, key: &str, value: &PerLevel, levels: usize) -> Vec<usize> {
        value.expand(key, levels).unwrap_or_else(|refused| {
            self.refused.push(refused);
            vec![1; levels]
        })
    }

    pub(super) fn count(&mut self, key: &str, found: usize, levels: usize) {
        if found != levels || levels == 0 {
            self.refuse(key, format!("{found} entries"), "one for each of `block_out_channels`");
        }
    }

    pub(super) fn divides(&mut self, key: &str, divisor: usize, width: usize) {
        if divisor == 0 || !width.is_multiple_of(divisor) {
            self.refuse(key, divisor, format!("a divisor of {width}"));
        }
    }

    pub(super) fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.file).map_err(|source| Error::InvalidConfig { path: self.path.clone(), source })
    }

    /// Reports refusals before parsing: parsing the same values would fail with a vaguer message.
    pub(super) fn finish_early(&mut self) -> Result<()> {
        if self.refused.is_empty() {
            return Ok(());
        }
        Err(Error::UnsupportedSettings { path: self.path.clone(), settings: std::mem::take(&mut self.refused) })
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.finish_early()
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

/// One number for all levels of a network, or one per level.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum PerLevel {
    One(usize),
    Each(Vec<usize>),
}

impl PerLevel {
    fn expand(&self, key: &str, levels: usize) -> std::result::Result<Vec<usize>, UnsupportedSetting> {
        match self {
            Self::One(value) => Ok(vec![*value; levels]),
            Self::Each(values) if values.len() == levels => Ok(values.clone()),
            Self::Each(values) => Err(UnsupportedSetting {
                key: key.into(),
                value: format!("{values:?}"),
                supported: format!("one number, or {levels}: one for each of `block_out_channels`"),
            }),
        }
    }
}
