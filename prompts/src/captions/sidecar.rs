//! Caption files beside their pictures.

use std::fs;
use std::path::{Path, PathBuf};

use super::Found;
use crate::{Error, PictureProblem, Result};

/// Caption file endings, the preferred one first.
const ENDINGS: [&str; 2] = ["txt", "caption"];

/// The caption files of one folder.
pub(super) struct Sidecars {
    files: Vec<PathBuf>,
}

impl Sidecars {
    /// Picks the caption files out of a folder's files.
    pub(super) fn among(files: &[PathBuf]) -> Self {
        let is_caption = |path: &&PathBuf| ENDINGS.iter().any(|ending| has_ending(path, ending));
        Self { files: files.iter().filter(is_caption).cloned().collect() }
    }

    /// The caption file of a picture.
    pub(super) fn of(&self, picture: &Path) -> Option<&Path> {
        ENDINGS.iter().find_map(|ending| {
            let belongs =
                |file: &&PathBuf| has_ending(file, ending) && file.with_extension("") == picture.with_extension("");
            self.files.iter().find(belongs).map(PathBuf::as_path)
        })
    }

    /// The caption files that no picture has the name of.
    pub(super) fn unused<'a>(
        &'a self,
        pictures: impl Iterator<Item = &'a Path> + Clone,
    ) -> impl Iterator<Item = &'a Path> {
        let is_unused = move |file: &&Path| {
            let stem = file.with_extension("");
            !pictures.clone().any(|picture| picture.with_extension("") == stem)
        };
        self.files.iter().map(PathBuf::as_path).filter(is_unused)
    }
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(ending))
}

/// The text of a caption file; `picture` and `caption_file` are the names for people.
pub(super) fn read(path: &Path, picture: &str, caption_file: &str) -> Result<Found<String>> {
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let (picture, caption_file) = (picture.to_owned(), caption_file.to_owned());
    Ok(match std::str::from_utf8(&bytes) {
        Err(error) => Err(PictureProblem::NotUtf8 { picture, caption_file, valid_bytes: error.valid_up_to() }),
        // Some editors put a byte order mark in front.
        Ok(text) => match text.trim_start_matches('\u{feff}').trim() {
            "" => Err(PictureProblem::EmptyCaption { picture, caption_file }),
            caption => Ok(caption.to_owned()),
        },
    })
}
