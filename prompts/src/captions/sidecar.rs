//! Caption files beside their images.

use std::path::{Path, PathBuf};

use super::Found;
use crate::bounded;
use crate::{Error, ImageProblem, Result};

/// Caption file endings, the preferred one first.
const ENDINGS: [&str; 2] = ["txt", "caption"];

/// Largest caption file; a caption of more than a few hundred bytes is cut by every text encoder.
const LARGEST_CAPTION: u64 = 1 << 20;

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

    /// The caption file of an image.
    pub(super) fn of(&self, image: &Path) -> Option<&Path> {
        ENDINGS.iter().find_map(|ending| {
            let belongs =
                |file: &&PathBuf| has_ending(file, ending) && file.with_extension("") == image.with_extension("");
            self.files.iter().find(belongs).map(PathBuf::as_path)
        })
    }

    /// The caption files without an image of the same name.
    pub(super) fn unused<'a>(
        &'a self,
        images: impl Iterator<Item = &'a Path> + Clone,
    ) -> impl Iterator<Item = &'a Path> {
        let is_unused = move |file: &&Path| {
            let stem = file.with_extension("");
            !images.clone().any(|image| image.with_extension("") == stem)
        };
        self.files.iter().map(PathBuf::as_path).filter(is_unused)
    }
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(ending))
}

/// The text of a caption file; a problem is reported with the names `image` and `caption_file`.
pub(super) fn read(path: &Path, image: &str, caption_file: &str) -> Result<Found<String>> {
    let bytes = bounded::read(path, LARGEST_CAPTION).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let (image, caption_file) = (image.to_owned(), caption_file.to_owned());
    Ok(match std::str::from_utf8(&bytes) {
        Err(error) => Err(ImageProblem::NotUtf8 { image, caption_file, valid_bytes: error.valid_up_to() }),
        // Some editors put a byte order mark in front.
        Ok(text) => match text.trim_start_matches('\u{feff}').trim() {
            "" => Err(ImageProblem::EmptyCaption { image, caption_file }),
            caption => Ok(caption.to_owned()),
        },
    })
}
