//! An artist's images, read to learn from or to be compared with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use catelier_evaluation::{OtherArtist, Reference};
use catelier_pipelines::data::{DataNotice, DecodedImage, ImageOptions, Mirror, Resolution, TrainingImages};
use catelier_prompts::Trigger;
use catelier_prompts::captions::{CaptionOptions, IMAGE_EXTENSIONS, collect};

use crate::drawn;
use crate::error::{Context, Error, Result};
use crate::session::Session;
use crate::settings::ResolvedTrain;

/// The images to learn from, decoded and cropped; notes and warnings tell what is worth knowing about them.
///
/// # Errors
/// [`Error::User`] for a folder without images, and names every image that cannot be used.
pub fn load_training(settings: &ResolvedTrain, session: &Session<'_>) -> Result<TrainingImages> {
    drawn::refuse_part(&settings.images)?;
    let trigger = Trigger::new(&settings.trigger).user_error("cannot use the trigger")?;
    let options = ImageOptions {
        captions: CaptionOptions { shared_caption: settings.caption.clone() },
        resolution: Resolution::square(settings.resolution as u32).user_error("cannot use `resolution`")?,
        crop: settings.crop,
        mirror: if settings.flip { Mirror::Also } else { Mirror::Never },
        seed: settings.seed,
    };
    let images =
        TrainingImages::load(&settings.images, &trigger, &options).user_error("cannot train on these images")?;
    for notice in &images.notices {
        match notice {
            DataNotice::TriggerInserted { trigger, names } => {
                let (some, all) = (names.len(), images.images.len());
                session.note(format!("put the trigger `{trigger}` in front of {some} of {all} captions"));
            }
            _ => session.warn(notice.to_string()),
        }
    }
    session.note(format!("{} images from {}", images.images.len(), settings.images.display()));
    Ok(images)
}

/// The references of an evaluation or sheet: every image of `folder`, by name; none where there is no folder.
///
/// # Errors
/// [`Error::User`] for a folder without images, and an image that cannot be read.
pub fn read_references(folder: Option<&Path>) -> Result<Vec<Reference>> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    drawn::refuse_part(folder)?;
    let images = paths(folder)?;
    if images.is_empty() {
        return Err(Error::user(
            format!("there is no image in `{}`", folder.display()),
            format!("images end in {}", IMAGE_EXTENSIONS.join(", ")),
        ));
    }
    // References need no captions; where one of them has none, none is used.
    let captions: BTreeMap<PathBuf, String> = collect(folder, &CaptionOptions::default())
        .map(|collected| collected.images.into_iter().map(|image| (image.path, image.caption)).collect())
        .unwrap_or_default();
    let open = |path: &PathBuf| {
        let image = DecodedImage::open(path).user_error("cannot read a reference")?.pixels;
        Ok(Reference { image, caption: captions.get(path).cloned() })
    };
    images.iter().map(open).collect()
}

/// Artists to compare with: every folder in `folder` by its name, with its images; none where there is no folder.
///
/// # Errors
/// [`Error::User`] for a folder without folders, and those of [`read_references`].
pub fn read_artists(folder: Option<&Path>) -> Result<Vec<OtherArtist>> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    let artists = folders(folder)?;
    if artists.is_empty() {
        return Err(Error::user(
            format!("there is no folder in `{}`", folder.display()),
            "put the images of each artist into a folder with the artist's name",
        ));
    }
    let read = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let images = read_references(Some(path))?.into_iter().map(|reference| reference.image).collect();
        Ok(OtherArtist { name, images })
    };
    artists.iter().map(read).collect()
}

/// The images at the top of a folder, sorted.
pub(crate) fn paths(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = entries(folder)?;
    paths.retain(|path| is_image(path));
    Ok(paths)
}

/// The folders in a folder, sorted.
pub(crate) fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = entries(folder)?;
    paths.retain(|path| path.is_dir());
    Ok(paths)
}

/// What is in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).user_error(format!("cannot read the folder `{}`", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    extension.is_some_and(|extension| IMAGE_EXTENSIONS.contains(&extension.as_str()))
}

/// Whether a file lies at the top of its folder, has a number for a name and one of these endings, as `0001.png` has.
pub(crate) fn is_numbered(file: &Path, endings: &[&str]) -> bool {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let ending = file.extension().unwrap_or_default().to_string_lossy();
    file.components().count() == 1 && stem.chars().all(|letter| letter.is_ascii_digit()) && endings.contains(&&*ending)
}
