//! Values of settings that are written as text: sizes, amounts of memory, names.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

/// A text that is no value of its setting; it says how to write one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(String);

impl ValueError {
    /// A text that breaks this rule.
    pub fn new(rule: impl Into<String>) -> Self {
        Self(rule.into())
    }
}

/// A value that settings write as text, in the form that it is displayed and parsed in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Text<T>(pub T);

impl<T: FromStr> FromStr for Text<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.parse().map(Self)
    }
}

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

/// Width and height of an image in pixels: `512x768` in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSize {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

impl ImageSize {
    /// The same length on both sides.
    pub fn square(side: usize) -> Self {
        Self { width: side as u32, height: side as u32 }
    }
}

impl FromStr for ImageSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let sides = text.split_once(['x', 'X']);
        let size =
            sides.and_then(|(width, height)| Some(Self { width: width.parse().ok()?, height: height.parse().ok()? }));
        size.ok_or_else(|| ValueError::new("not a size; write it as `512x512`"))
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}x{}", self.width, self.height)
    }
}

/// Memory that a run may take: `auto`, or an amount such as `8GB`, `7.5GiB` or `6000MB` in text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemoryLimit {
    /// Nine tenths of what the machine has left.
    #[default]
    Auto,
    /// This many bytes.
    Bytes(u64),
}

const UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl FromStr for MemoryLimit {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()));
        match (number.trim().parse::<f64>(), unit) {
            (Ok(number), Some((_, bytes))) if number > 0.0 && number.is_finite() => {
                Ok(Self::Bytes((number * *bytes as f64) as u64))
            }
            _ => Err(ValueError::new("not an amount of memory; write it like `8GB`, `7.5GiB` or `auto`")),
        }
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => out.write_str("auto"),
            Self::Bytes(bytes) => write!(out, "{bytes}B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_are_read_in_the_usual_units() {
        let bytes = |text: &str| text.parse::<MemoryLimit>().unwrap();
        assert_eq!(bytes("8GB"), MemoryLimit::Bytes(8_000_000_000));
        assert_eq!(bytes("1.5 gib"), MemoryLimit::Bytes(3 << 29));
        assert_eq!(bytes("6000MB"), MemoryLimit::Bytes(6_000_000_000));
        for wrong in ["", "8", "GB", "-1GB", "8 bananas", "nanGB"] {
            assert!(wrong.parse::<MemoryLimit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_are_written_as_they_are_read() {
        let limit = MemoryLimit::Bytes(3 << 29);
        assert_eq!(limit.to_string().parse::<MemoryLimit>().unwrap(), limit);
        let size = ImageSize { width: 512, height: 768 };
        assert_eq!(size.to_string().parse::<ImageSize>().unwrap(), size);
        assert!("512".parse::<ImageSize>().is_err() && "512x".parse::<ImageSize>().is_err());
    }
}
