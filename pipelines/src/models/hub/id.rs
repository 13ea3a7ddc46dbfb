//! Hub ids as users write them.

use std::fmt;
use std::str::FromStr;

use super::error::HubError;

/// `organisation/name` or `organisation/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    repository: String,
    revision: String,
}

/// Models that have moved: old id, new id.
const MOVED: [(&str, &str); 1] = [("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5")];

/// The revision of an id without one.
const DEFAULT_REVISION: &str = "main";

impl HubId {
    /// `organisation/name`; for a model that has moved, the new one.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// A branch, tag or commit; `main` if the id has none.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl FromStr for HubId {
    type Err = HubError;

    /// # Errors
    /// [`HubError::InvalidSetting`] for anything but two names of letters, digits, `-`, `_` and `.`.
    fn from_str(text: &str) -> Result<Self, HubError> {
        let invalid = |rule| HubError::InvalidSetting { what: "hub id", value: text.into(), rule };
        let (repository, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let names: Vec<&str> = repository.split('/').collect();
        if names.len() != 2 || !names.iter().all(|name| is_name(name)) {
            return Err(invalid("expected `organisation/name`, with letters, digits, `-`, `_` and `.`"));
        }
        if !revision.split('/').all(is_name) {
            return Err(invalid("expected a branch, tag or commit after `@`"));
        }
        let moved = MOVED.iter().find(|(old, _)| *old == repository);
        Ok(Self { repository: moved.map_or(repository, |(_, new)| new).into(), revision: revision.into() })
    }
}

/// Whether `name` can be part of a path on the hub and in the cache.
fn is_name(name: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    !name.is_empty() && name.len() <= 96 && !name.contains("..") && name != "." && name.chars().all(plain)
}

impl fmt::Display for HubId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            DEFAULT_REVISION => write!(out, "{}", self.repository),
            revision => write!(out, "{}@{revision}", self.repository),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_without_revision_means_main() {
        let id: HubId = "some-org/model_1.5".parse().unwrap();
        assert_eq!((id.repository(), id.revision()), ("some-org/model_1.5", "main"));
        assert_eq!(id.to_string(), "some-org/model_1.5");
    }

    #[test]
    fn a_revision_may_have_slashes() {
        let id: HubId = "a/b@refs/pr/7".parse().unwrap();
        assert_eq!((id.revision(), id.to_string().as_str()), ("refs/pr/7", "a/b@refs/pr/7"));
    }

    #[test]
    fn a_model_that_moved_is_found_where_it_is() {
        let id: HubId = "runwayml/stable-diffusion-v1-5@fp16".parse().unwrap();
        assert_eq!(id.to_string(), "stable-diffusion-v1-5/stable-diffusion-v1-5@fp16");
    }

    #[test]
    fn paths_and_addresses_are_not_ids() {
        for text in ["", "model", "a/b/c", "../b", "a/..", "a/b@../x", "https://a/b", "a/b c", "/a", "a/b@"] {
            assert!(text.parse::<HubId>().is_err(), "{text}");
        }
    }
}
