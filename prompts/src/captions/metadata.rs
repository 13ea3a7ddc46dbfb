//! `metadata.jsonl` of Hugging Face's image folders: one JSON object a line.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::CaptionSource;
use super::folder::is_image;
use crate::bounded;
use crate::{Error, MetadataProblem, Result};

const FILE: &str = "metadata.jsonl";

/// Largest file: the captions of hundreds of thousands of images.
const LARGEST_FILE: u64 = 64 << 20;

/// Longest line. Its parsed form may take several times its memory.
const LONGEST_LINE: usize = 1 << 16;

/// Most problems that one error lists.
const MOST_PROBLEMS: usize = 100;

/// The captions of one folder's `metadata.jsonl`; empty when there is none.
pub(super) struct Metadata {
    path: PathBuf,
    entries: BTreeMap<PathBuf, Entry>,
}

/// One line.
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) text: String,
}

impl Entry {
    pub(super) fn source(&self, file: &Path) -> CaptionSource {
        CaptionSource::Metadata { path: file.to_owned(), line: self.line }
    }
}

impl Metadata {
    /// Reads a folder's `metadata.jsonl`, when there is one.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let bytes = match bounded::read(&path, LARGEST_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(Error::Read { path, source }),
        };
        let mut entries: BTreeMap<PathBuf, Entry> = BTreeMap::new();
        let mut problems = Vec::new();
        for (line, bytes) in numbered_lines(&bytes) {
            match parse_line(folder, line, bytes, &entries) {
                Ok((image, entry)) => drop(entries.insert(image, entry)),
                Err(problem) => problems.push(problem),
            }
            if problems.len() == MOST_PROBLEMS {
                break;
            }
        }
        if problems.is_empty() { Ok(Self { path, entries }) } else { Err(Error::Metadata { path, problems }) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn entry(&self, image: &Path) -> Option<&Entry> {
        self.entries.get(image)
    }

    /// Every image that the file names, also in subfolders.
    pub(super) fn images(&self) -> impl Iterator<Item = &Path> {
        self.entries.keys().map(PathBuf::as_path)
    }
}

/// Lines that are not blank, with their line numbers from 1.
fn numbered_lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    (1..).zip(lines).filter(|(_, line)| !line.is_empty())
}

fn parse_line(
    folder: &Path,
    line: usize,
    bytes: &[u8],
    entries: &BTreeMap<PathBuf, Entry>,
) -> std::result::Result<(PathBuf, Entry), MetadataProblem> {
    if bytes.len() > LONGEST_LINE {
        return Err(MetadataProblem::NotAnObject { line, reason: format!("it has more than {LONGEST_LINE} bytes") });
    }
    let object: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| not_an_object(line, &error))?;
    let text = |keys: &[&str], field| {
        let value = keys.iter().find_map(|key| object.get(*key)?.as_str());
        value.map(str::to_owned).ok_or(MetadataProblem::MissingField { line, field })
    };
    let file_name = text(&["file_name"], "`file_name`")?;
    let caption = text(&["text", "prompt"], "`text` or `prompt`")?;
    let image = folder.join(&file_name);
    let leads_out = |part| !matches!(part, Component::Normal(_) | Component::CurDir);
    if Path::new(&file_name).components().any(leads_out) {
        return Err(MetadataProblem::OutsideFolder { line, file_name });
    }
    if !image.is_file() {
        return Err(MetadataProblem::MissingFile { line, file_name });
    }
    if !is_image(&image) {
        return Err(MetadataProblem::NotAnImage { line, file_name });
    }
    // `components` drops a `./`, so that the path is the one that listing the folder gives.
    let image: PathBuf = image.components().collect();
    match entries.get(&image) {
        // Two lines with the same text are harmless. Two different texts are an error, since only the owner knows which
        // one is right.
        Some(Entry { line: first, text }) if *text != caption => {
            Err(MetadataProblem::Repeated { line, file_name, first: *first })
        }
        Some(earlier) => Ok((image, Entry { line: earlier.line, text: caption })),
        None => Ok((image, Entry { line, text: caption })),
    }
}

/// The JSON parser's error without its own line number, which is always 1.
fn not_an_object(line: usize, error: &serde_json::Error) -> MetadataProblem {
    let reason = error.to_string();
    let reason = reason.split(" at line ").next().unwrap_or(&reason).to_owned();
    MetadataProblem::NotAnObject { line, reason }
}
