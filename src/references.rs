//! An artist's pictures, read to be compared with.

use std::path::{Path, PathBuf};

use catelier_pipelines::data::Picture;
use catelier_prompts::captions::IMAGE_EXTENSIONS;
use image::RgbImage;

use crate::failure::{Blame, Failure, Outcome};

/// Every picture of `folder`, by name; none where there is no folder.
pub(crate) fn read(folder: Option<&Path>) -> Outcome<Vec<RgbImage>> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    let pictures = paths(folder)?;
    if pictures.is_empty() {
        return Err(Failure::request(
            format!("there is no picture in `{}`", folder.display()),
            format!("pictures end in {}", IMAGE_EXTENSIONS.join(", ")),
        ));
    }
    let open = |path: &PathBuf| Picture::open(path).map(|picture| picture.pixels).request("cannot read a reference");
    pictures.iter().map(open).collect()
}

fn paths(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).request(format!("cannot read the folder `{}`", folder.display()))?;
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_picture(path)).collect();
    paths.sort();
    Ok(paths)
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| IMAGE_EXTENSIONS.contains(&extension.as_str()))
}
