//! What a hub says about a revision of a model: its commit and its files.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::HubId;
use super::error::HubError;
use super::oid::Oid;

/// The commit of a revision, and its files by name. Names are as the hub sent them: [`is_plain`] tells which are safe.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: BTreeMap<String, Listed>,
}

/// What the listing says about one file; older hubs say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) bytes: Option<u64>,
    pub(super) oid: Option<Oid>,
}

#[derive(Deserialize)]
struct Description {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// Digits of a commit.
const COMMIT_DIGITS: usize = 40;

impl Listing {
    /// Reads the description of `id` that `server` sent.
    pub(super) fn parse(id: &HubId, server: &str, text: &[u8]) -> Result<Self, HubError> {
        let description: Description = serde_json::from_slice(text).map_err(|source| HubError::Listing {
            id: id.to_string(),
            server: server.into(),
            source,
        })?;
        let wrong = |what, value: &str, expected: &str| HubError::Contradiction {
            id: id.to_string(),
            server: server.into(),
            what,
            value: shown(value),
            expected: expected.into(),
        };
        if !is_commit(&description.sha) {
            return Err(wrong("sha", &description.sha, "a commit of 40 hexadecimal digits"));
        }
        if is_commit(id.revision()) && !id.revision().eq_ignore_ascii_case(&description.sha) {
            return Err(wrong("sha", &description.sha, id.revision()));
        }
        let mut files = BTreeMap::new();
        for sibling in description.siblings {
            let listed = sibling.listed().map_err(|oid| wrong("object id", &oid, "40 or 64 hexadecimal digits"))?;
            files.insert(sibling.rfilename, listed);
        }
        Ok(Self { commit: description.sha, files })
    }
}

impl Sibling {
    /// The size and the object id; fails with an object id that is none.
    fn listed(&self) -> Result<Listed, String> {
        let lfs = self.lfs.as_ref();
        let bytes = lfs.and_then(|lfs| lfs.size).or(self.size);
        let oid = lfs.and_then(|lfs| lfs.sha256.as_ref()).or(self.blob_id.as_ref().filter(|_| lfs.is_none()));
        let oid = oid.map(|text| Oid::parse(text).ok_or_else(|| text.clone())).transpose()?;
        Ok(Listed { bytes, oid })
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == COMMIT_DIGITS && text.bytes().all(|letter| letter.is_ascii_hexdigit())
}

/// Whether `name` is a relative path of plain components, which stays in its folder on every system.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_graphic() && !"\\:*?\"<>|".contains(letter);
    name.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255) && {
        name.split('/').flat_map(str::chars).all(plain)
    }
}

/// A value of the hub for an error message: escaped, and its beginning only.
pub(super) fn shown(value: &str) -> String {
    const MOST: usize = 120;
    let mut text: String = value.chars().take(MOST).flat_map(char::escape_debug).collect();
    if value.chars().nth(MOST).is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn parse(id: &str, text: &str) -> Result<Listing, HubError> {
        Listing::parse(&id.parse().unwrap(), "https://hub.example", text.as_bytes())
    }

    #[test]
    fn old_and_new_hubs_are_understood() {
        let sha256 = "5".repeat(64);
        let text = format!(
            r#"{{"sha": "{COMMIT}", "private": false, "siblings": [{{"rfilename": "a"}},
            {{"rfilename": "b", "size": 3, "blobId": "{COMMIT}"}},
            {{"rfilename": "c", "size": 7, "blobId": "{COMMIT}", "lfs": {{"sha256": "{sha256}", "size": 7, "pointerSize": 1}}}}]}}"#
        );
        let listing = parse("a/b", &text).unwrap();
        assert_eq!(listing.files["a"], Listed::default());
        assert_eq!(listing.files["b"], Listed { bytes: Some(3), oid: Oid::parse(COMMIT) });
        assert_eq!(listing.files["c"], Listed { bytes: Some(7), oid: Oid::parse(&sha256) });
    }

    #[test]
    fn commits_and_object_ids_are_digits() {
        for sha in ["", "main", "../../x", &COMMIT[1..], &format!("{COMMIT}0")] {
            let error = parse("a/b", &format!(r#"{{"sha": "{sha}", "siblings": []}}"#)).unwrap_err();
            assert!(matches!(&error, HubError::Contradiction { what: "sha", value, .. } if value == sha), "{error}");
        }
        let oid = format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "a", "blobId": "../x"}}]}}"#);
        assert!(matches!(parse("a/b", &oid), Err(HubError::Contradiction { what: "object id", .. })));
        let other = format!("a/b@{}", COMMIT.replace('0', "f"));
        assert!(parse(&other, &format!(r#"{{"sha": "{COMMIT}", "siblings": []}}"#)).is_err());
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "[]", "{}", "<html>", &"[".repeat(100_000)] {
            assert!(matches!(parse("a/b", text), Err(HubError::Listing { .. })), "{text:.20}");
        }
    }

    #[test]
    fn plain_names_stay_in_their_folder() {
        for name in ["model_index.json", "unet/config.json", "a/b/c-00001-of-00002.safetensors", "..a", "a..b/c"] {
            assert!(is_plain(name), "{name}");
        }
        for name in
            ["", "/a", "a/", "a//b", "../a", "a/../b", "a/..", "./a", "a\\b", "C:a", "a\nb", "a\u{1b}[2J", "a b", "ä"]
        {
            assert!(!is_plain(name), "{name:?}");
        }
        assert!(!is_plain(&"a".repeat(256)));
    }

    #[test]
    fn values_of_the_hub_are_shown_escaped_and_short() {
        assert_eq!(shown("a\u{1b}[2J\n"), "a\\u{1b}[2J\\n");
        assert!(shown(&"x".repeat(10_000)).chars().count() < 130);
    }
}
