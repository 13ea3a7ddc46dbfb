//! The private facts about the machine and the images that a file may or may not contain.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How much metadata a written file contains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disclosure {
    /// Only the entries that loaders need: no trigger, no date, no settings.
    None,
    /// Properties of the adapter and its training settings, without local paths and without anything about single
    /// images: the default.
    #[default]
    Minimal,
    /// Everything known, including folder names and caption statistics.
    Full,
}

impl FromStr for Disclosure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "minimal" => Ok(Self::Minimal),
            "full" => Ok(Self::Full),
            _ => Err(format!("expected `none`, `minimal` or `full`, found `{text}`")),
        }
    }
}

/// The text that replaces a local path.
pub(crate) const REDACTED: &str = "<local path>";

/// Header entries of trainers that hold folder names, captions or file names.
const PRIVATE_ENTRIES: [&str; 8] = [
    "ss_bucket_info",
    "ss_dataset_dirs",
    "ss_datasets",
    "ss_reg_dataset_dirs",
    "ss_sd_model_name",
    "ss_tag_frequency",
    "ss_training_comment",
    "ss_vae_name",
];

/// Last words of settings whose value is always a path.
const PATH_SETTINGS: [&str; 11] =
    ["cache", "config", "dir", "directory", "file", "folder", "images", "out", "output", "path", "references"];

/// Whether a header entry is left out at [`Disclosure::Minimal`].
pub(crate) fn is_private(name: &str, value: &str) -> bool {
    PRIVATE_ENTRIES.contains(&name) || is_local_path(value)
}

/// Whether text is a local path: absolute, in a home folder, relative by dots, on a drive, or a file URL. A hub id such
/// as `owner/name` is not.
pub(crate) fn is_local_path(text: &str) -> bool {
    let starts = ["/", "~/", "./", "../", "file:", "\\\\", ".\\", "..\\"];
    let drive = text.as_bytes().get(1..3).is_some_and(|b| b == b":\\" || b == b":/")
        && text.as_bytes()[0].is_ascii_alphabetic();
    drive || starts.iter().any(|start| text.starts_with(start))
}

/// The settings with [`REDACTED`] in place of local paths.
pub(crate) fn without_paths(settings: &Value) -> Value {
    redacted(settings, false)
}

fn redacted(value: &Value, names_a_path: bool) -> Value {
    match value {
        Value::String(text) if names_a_path || is_local_path(text) => Value::from(REDACTED),
        Value::Array(items) => items.iter().map(|item| redacted(item, names_a_path)).collect(),
        Value::Object(entries) => entries
            .iter()
            .map(|(key, value)| {
                let names_a_path = PATH_SETTINGS.iter().any(|name| ends_with_word(key, name));
                (key.clone(), redacted(value, names_a_path))
            })
            .collect(),
        other => other.clone(),
    }
}

/// Whether `word` is the last word of a setting's name, as in `out` and `image_folder`.
fn ends_with_word(key: &str, word: &str) -> bool {
    key.strip_suffix(word).is_some_and(|before| before.is_empty() || before.ends_with(['_', '-']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn local_paths_are_told_from_hub_ids() {
        for path in ["/home/jo/art", "~/art", "./art", "../art", "C:\\art", "d:/art", "\\\\nas\\art"] {
            assert!(is_local_path(path), "{path}");
        }
        for other in ["runwayml/sd", "embedded", "a:b", "http://x/y", "512x512", ""] {
            assert!(!is_local_path(other), "{other}");
        }
    }

    #[test]
    fn settings_lose_their_paths_and_nothing_else() {
        let settings = json!({
            "images": "art", "rank": 4, "base": "/models/sd15",
            "preview": {"prompts": ["a cat", "/x"], "prompts_file": "p.txt"},
            "references": ["a", "b"], "about": "kept"
        });
        let expected = json!({
            "images": REDACTED, "rank": 4, "base": REDACTED,
            "preview": {"prompts": ["a cat", REDACTED], "prompts_file": REDACTED},
            "references": [REDACTED, REDACTED], "about": "kept"
        });
        assert_eq!(without_paths(&settings), expected);
    }

    #[test]
    fn caption_statistics_are_private() {
        assert!(is_private("ss_tag_frequency", "{}"));
        assert!(is_private("ss_anything", "/home/jo"));
        assert!(!is_private("ss_steps", "900"));
    }
}
