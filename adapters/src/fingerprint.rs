//! Fingerprints of base models: an adapter file stores the fingerprint of its base, which finds the base again.

use std::fmt;

/// A fingerprint of a base model.
///
/// Version 2 is `v2-SIGNS` or `v2-SIGNS-VALUES`: hashes over samples of every weight. `SIGNS` hashes the signs, which
/// no rounding changes; `VALUES` hashes the values rounded to f16. Copies of one base in f32 and f16 have the same
/// fingerprint. A copy in bf16 has lost the bits that `VALUES` needs and has `SIGNS` alone.
///
/// A fingerprint without a version prefix is of version 1, which depended on the precision of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fingerprint<'a> {
    /// A fingerprint of another version, as text. This program does not make such fingerprints.
    Unversioned(&'a str),
    /// Version 2.
    V2 {
        /// Hash of everything that rounding leaves unchanged.
        signs: &'a str,
        /// Hash of values rounded to f16; `None` for copies in bf16.
        values: Option<&'a str>,
    },
}

impl<'a> Fingerprint<'a> {
    /// Parses a fingerprint. Every text is one, so parsing cannot fail.
    pub fn parse(text: &'a str) -> Self {
        match text.strip_prefix("v2-") {
            None => Self::Unversioned(text),
            Some(parts) => match parts.split_once('-') {
                Some((signs, values)) => Self::V2 { signs, values: Some(values) },
                None => Self::V2 { signs: parts, values: None },
            },
        }
    }

    /// Whether both can belong to one base: false only if they have the same version and differ in a part that both
    /// have.
    pub fn agrees_with(self, other: Fingerprint<'_>) -> bool {
        match (self, other) {
            (Self::Unversioned(one), Fingerprint::Unversioned(other)) => one == other,
            (Self::V2 { signs, values }, Fingerprint::V2 { signs: other_signs, values: other_values }) => {
                signs == other_signs && values.zip(other_values).is_none_or(|(one, other)| one == other)
            }
            _ => true,
        }
    }
}

impl fmt::Display for Fingerprint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unversioned(text) => f.write_str(text),
            Self::V2 { signs, values: Some(values) } => write!(f, "v2-{signs}-{values}"),
            Self::V2 { signs, values: None } => write!(f, "v2-{signs}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree(one: &str, other: &str) -> bool {
        let (one, other) = (Fingerprint::parse(one), Fingerprint::parse(other));
        assert_eq!(one.agrees_with(other), other.agrees_with(one));
        one.agrees_with(other)
    }

    #[test]
    fn parts_that_both_have_must_be_equal() {
        assert!(agree("v2-a-b", "v2-a-b"));
        assert!(!agree("v2-a-b", "v2-a-c"));
        assert!(!agree("v2-a-b", "v2-c-b"));
        assert!(agree("v2-a", "v2-a-b"));
        assert!(!agree("v2-a", "v2-c-b"));
        assert!(!agree("v2-a", "v2-ab"));
    }

    #[test]
    fn versions_cannot_be_compared() {
        assert!(agree("0123", "v2-a-b"));
        assert!(agree("0123", "0123"));
        assert!(!agree("0123", "4567"));
    }

    #[test]
    fn a_fingerprint_is_printed_as_it_was_read() {
        for text in ["0123", "v2-a", "v2-a-b"] {
            assert_eq!(Fingerprint::parse(text).to_string(), text);
        }
    }
}
