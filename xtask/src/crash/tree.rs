//! What a command leaves: files by path, without what differs between any two runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// Fields of `metrics.jsonl` that are measured, not computed, and the checksum of a line with them.
const MEASURED: [&str; 3] = ["seconds", "peak_memory_bytes", "sum"];

const METRICS: &str = "metrics.jsonl";

/// The files of a folder, and their bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tree(BTreeMap<PathBuf, Vec<u8>>);

/// How a tree differs from what it should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Files that are missing or have other bytes.
    pub(super) differing: Vec<PathBuf>,
    /// Files that should not be there.
    pub(super) left_over: Vec<PathBuf>,
    /// Files of metrics that lack a step, or have one twice.
    pub(super) metrics: Vec<PathBuf>,
}

impl Tree {
    /// Everything in `root`, apart from the folder `inputs` at its top.
    pub(super) fn of(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.add(root, Path::new("")).with_context(|| format!("cannot read `{}`", root.display()))?;
        Ok(tree)
    }

    fn add(&mut self, root: &Path, inside: &Path) -> Result<()> {
        for entry in fs::read_dir(root.join(inside))? {
            let path = inside.join(entry?.file_name());
            let whole = root.join(&path);
            let kind = fs::symlink_metadata(&whole)?.file_type();
            if path == Path::new("inputs") {
                continue;
            }
            if kind.is_dir() {
                self.add(root, &path)?;
            } else if kind.is_symlink() {
                self.0.insert(path, fs::read_link(&whole)?.into_os_string().into_encoded_bytes());
            } else {
                let bytes = fs::read(&whole)?;
                let kept = if is_metrics(&path) { computed(&bytes) } else { bytes };
                self.0.insert(path, kept);
            }
        }
        Ok(())
    }

    /// How this tree differs from `expected`, file by file.
    pub(super) fn against(&self, expected: &Self) -> Difference {
        let differs = |(path, bytes): &(&PathBuf, &Vec<u8>)| self.0.get(*path) != Some(*bytes);
        let wrong = expected.0.iter().filter(differs).map(|(path, _)| path.clone());
        let (metrics, differing) = wrong.partition(|path| is_metrics(path));
        let left_over = self.0.keys().filter(|path| !expected.0.contains_key(*path)).cloned().collect();
        Difference { differing, left_over, metrics }
    }

    /// As [`against`](Self::against), where names only count up: every file has the bytes of an expected one, and every
    /// expected one is there, at most `runs` times.
    pub(super) fn against_contents(&self, expected: &Self, runs: usize) -> Difference {
        let times = |tree: &Self, bytes: &Vec<u8>| tree.0.values().filter(|found| *found == bytes).count();
        let missing = expected.0.iter().filter(|(_, bytes)| times(self, bytes) == 0);
        let unexpected = self.0.iter().filter(|(_, bytes)| {
            let wanted = times(expected, bytes);
            times(self, bytes) > runs * wanted
        });
        Difference {
            differing: missing.map(|(path, _)| path.clone()).collect(),
            left_over: unexpected.map(|(path, _)| path.clone()).collect(),
            metrics: Vec::new(),
        }
    }

    /// Whether a folder of the tree has a file with this ending; hidden files are none of a user's.
    pub(super) fn has(&self, folder: &Path, ending: &str) -> bool {
        self.0.keys().any(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.parent() == Some(folder) && name.ends_with(ending) && !name.starts_with('.')
        })
    }
}

impl Difference {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

fn is_metrics(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == METRICS)
}

/// The lines without what is measured; a line that is no JSON stays as it is.
fn computed(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let strip = |line: &[u8]| match serde_json::from_slice::<Value>(line) {
        Ok(Value::Object(mut fields)) => {
            fields.retain(|name, _| !MEASURED.contains(&name.as_str()));
            format!("{}\n", Value::Object(fields)).into_bytes()
        }
        _ => line.to_vec(),
    };
    lines.flat_map(strip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        Tree(files.iter().map(|(path, text)| (path.into(), computed(text.as_bytes()))).collect())
    }

    #[test]
    fn what_is_wrong_missing_or_left_over_is_told_apart() {
        let expected = tree(&[("out/a", "1"), ("out/b", "2"), ("out/metrics.jsonl", "{\"step\":1,\"seconds\":1.0}\n")]);
        let found = tree(&[("out/a", "1"), ("out/.a.1.partial", "1"), ("out/metrics.jsonl", "{\"step\":2}\n")]);
        let difference = found.against(&expected);
        assert_eq!(difference.differing, [Path::new("out/b")]);
        assert_eq!(difference.left_over, [Path::new("out/.a.1.partial")]);
        assert_eq!(difference.metrics, [Path::new("out/metrics.jsonl")]);
        let slower = tree(&[("out/a", "1"), ("out/b", "2"), ("out/metrics.jsonl", "{\"step\":1,\"seconds\":9.0}\n")]);
        assert!(slower.against(&expected).is_none());
    }

    #[test]
    fn files_that_count_up_are_compared_by_their_bytes() {
        let expected = tree(&[("out/000.png", "a"), ("out/001.png", "b")]);
        let again = tree(&[("out/000.png", "a"), ("out/001.png", "a"), ("out/002.png", "b")]);
        assert!(again.against_contents(&expected, 2).is_none());
        assert_eq!(
            again.against_contents(&expected, 1).left_over,
            [Path::new("out/000.png"), Path::new("out/001.png")]
        );
        let half = tree(&[("out/000.png", "a"), ("out/.001.partial", "")]);
        let difference = half.against_contents(&expected, 2);
        assert_eq!(difference.differing, [Path::new("out/001.png")]);
        assert_eq!(difference.left_over, [Path::new("out/.001.partial")]);
    }
}
