//! Images of the drawn world as training folders, for demos and simulated federations.

use std::path::{Path, PathBuf};

use catelier_gallery::{Artist, export};

use crate::error::{Context, Result};
use crate::output::OutputFolder;

/// Name of the folder of training images.
pub(crate) const IMAGES: &str = "images";

/// The artist of this name.
///
/// # Errors
/// [`Error::User`](crate::Error::User) lists the names where there is none.
pub fn artist(name: &str) -> Result<&'static Artist> {
    Artist::named(name).user_error("there is no such artist")
}

/// Draws a training folder, `part` of `folder`, in place of the one that an earlier run drew there.
pub(crate) fn draw(
    folder: &OutputFolder,
    part: &Path,
    artist: &'static Artist,
    count: usize,
    seed: u64,
) -> Result<PathBuf> {
    folder.clear(part, &is_drawn)?;
    let images = folder.path().join(part);
    export::write_folder(&images, artist, count, seed).failed("cannot draw the images")?;
    Ok(images)
}

/// Whether a training folder has a file of this name: `0001.png` and `0001.txt`.
fn is_drawn(file: &Path) -> bool {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let extension = file.extension().unwrap_or_default().to_string_lossy();
    let is_alone = file.components().count() == 1;
    is_alone && stem.chars().all(|c| c.is_ascii_digit()) && ["png", "txt"].contains(&&*extension)
}
