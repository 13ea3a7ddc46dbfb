//! An artist's images, read to be compared with.

use std::path::{Path, PathBuf};

use catelier_pipelines::data::Picture;
use catelier_prompts::captions::IMAGE_EXTENSIONS;
use image::RgbImage;

use crate::error::{Context, Error, Result};

/// Every image of `folder`, by name; none where there is no folder.
///
/// # Errors
/// [`Error::User`] for a folder without images, and an image that cannot be read.
pub fn read(folder: Option<&Path>) -> Result<Vec<RgbImage>> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    let images = paths(folder)?;
    if images.is_empty() {
        return Err(Error::user(
            format!("there is no image in `{}`", folder.display()),
            format!("images end in {}", IMAGE_EXTENSIONS.join(", ")),
        ));
    }
    let open = |path: &PathBuf| Picture::open(path).map(|image| image.pixels).user_error("cannot read a reference");
    images.iter().map(open).collect()
}

fn paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).user_error(format!("cannot read the folder `{}`", folder.display()))?;
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_image(path)).collect();
    paths.sort();
    Ok(paths)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| IMAGE_EXTENSIONS.contains(&extension.as_str()))
}
