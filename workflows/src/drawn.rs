//! Images of the drawn world as folders: for whoever asks, for demos and for simulated federations.

use std::path::{Path, PathBuf};

use catelier_evaluation::content::Said;
use catelier_evaluation::{Choices, OtherArtist};
use catelier_gallery::export::MODEL_SIDE;
use catelier_gallery::{self as gallery, Artist, Colour, Mention, Object, Setting, Triple, export};
use image::{Rgb, RgbImage};

use crate::error::{Context, Error, Result};
use crate::event::Stage;
use crate::images;
use crate::output::{Marker, OutputFolder};
use crate::session::Session;

/// The command that draws folders.
const COMMAND: &str = "gallery draw";

/// Name of the folder of training images.
pub(crate) const IMAGES: &str = "images";

/// The artist of this name.
///
/// # Errors
/// [`Error::User`] lists the names where there is none.
pub fn artist(name: &str) -> Result<&'static Artist> {
    Artist::named(name).user_error("there is no such artist")
}

/// What is drawn into a folder.
#[derive(Debug, Clone, Copy)]
pub enum Drawing {
    /// A training folder: a PNG file and its caption for each image.
    Folder {
        /// Who draws.
        source: export::Source,
        /// How many images.
        count: usize,
        /// Seed of the scenes.
        seed: u64,
    },
    /// `pictures.npy` and `metadata.jsonl`.
    Array(export::Request),
}

/// Draws images into the folder `out`. A drawing that was stopped in the middle begins anew there; one that came to its end
/// is replaced only with `force`, which also draws beside files that no drawing made.
///
/// # Errors
/// [`Error::User`] for a folder that holds something else, [`Error::Failed`] when the disk fails.
pub fn draw_into(out: &Path, drawing: Drawing, force: bool, session: &Session<'_>) -> Result<()> {
    let folder = OutputFolder::claim(out, COMMAND, force, session)?;
    if folder.was_finished() && !force {
        return Err(Error::user(
            format!("`{}` holds drawn images already", out.display()),
            "choose another `--out`, or draw them anew by `--force`",
        ));
    }
    folder.clear(Path::new(""), &|file| is_drawn(file) || is_array(file))?;
    drawing.write(out, session)?;
    folder.finish()
}

impl Drawing {
    /// Draws, and says how much there is if it is stopped.
    fn write(self, out: &Path, session: &Session<'_>) -> Result<()> {
        let (mut done, total) = (0, self.count());
        let mut observe = |images| {
            done = images;
            session.progress(Stage::Draw, images, total, "")
        };
        let (drawn, is_whole) = match self {
            Self::Folder { source, count, seed } => {
                (export::write_folder(out, source, count, seed, &mut observe), false)
            }
            Self::Array(request) => (export::write_npy(out, &request, &mut observe), true),
        };
        let drawn = drawn.failed("cannot draw the images");
        if matches!(drawn, Err(Error::Cancelled)) {
            let kept = if is_whole { 0 } else { done };
            session.note(format!("{kept} of {total} images are in `{}`; the same command begins anew", out.display()));
        }
        drawn
    }

    fn count(&self) -> usize {
        match self {
            Self::Folder { count, .. } => *count,
            Self::Array(request) => request.count,
        }
    }
}

/// Refuses a drawing that did not come to its end, which looks like a whole one.
pub(crate) fn refuse_part(images: &Path) -> Result<()> {
    match Marker::read(images)? {
        Some(marker) if marker.command == COMMAND && !marker.finished => Err(Error::user(
            format!("`{}` holds a part of its images: `catelier {COMMAND}` did not finish", images.display()),
            "draw them again by the same command",
        )),
        _ => Ok(()),
    }
}

/// Draws a training folder, `part` of `folder`, in place of the one that an earlier run drew there.
pub(crate) fn draw(
    folder: &OutputFolder,
    part: &Path,
    source: export::Source,
    count: usize,
    seed: u64,
    session: &Session<'_>,
) -> Result<PathBuf> {
    folder.clear(part, &is_drawn)?;
    let images = folder.path().join(part);
    export::write_folder(&images, source, count, seed, &mut |done| session.progress(Stage::Draw, done, count, ""))
        .failed("cannot draw the images")?;
    Ok(images)
}

/// What prompts ask for of object, colour and setting, and the captions of all scenes of the drawn world.
pub(crate) fn choices<'p>(prompts: impl Iterator<Item = &'p str>) -> Choices {
    let said = |mention: Mention| -> Said {
        let words =
            [mention.object.map(Object::word), mention.colour.map(Colour::word), mention.setting.map(Setting::word)];
        words.map(|word| word.map(str::to_owned)).to_vec()
    };
    Choices {
        facets: ["object", "colour", "setting"].map(str::to_owned).to_vec(),
        texts: Triple::all().map(|triple| (triple.caption(), said(triple.into()))).collect(),
        asked: prompts.map(|prompt| (prompt.to_owned(), said(Mention::in_text(prompt)))).collect(),
    }
}

/// Images by every drawn artist but `artist`, from whom an adapter's images should be told.
pub(crate) fn others(artist: &Artist) -> Vec<OtherArtist> {
    let scenes: Vec<Triple> = Triple::all().step_by(SCENES_APART).collect();
    let others = Artist::all().iter().filter(|other| other.name != artist.name);
    let draw = |other: &Artist| OtherArtist {
        name: other.name.to_owned(),
        images: scenes.iter().map(|scene| rgb(&other.draw(*scene, OTHERS_SEED).reduced(MODEL_SIDE))).collect(),
    };
    others.map(draw).collect()
}

/// Other images by the artist with this caption: scenes of `first_seed` and the seeds after it.
///
/// # Errors
/// [`Error::User`] for a caption that names no scene of the drawn world.
pub(crate) fn again(artist: &Artist, caption: &str, first_seed: u64, count: usize) -> Result<Vec<RgbImage>> {
    let Some(scene) = Triple::all().find(|scene| scene.caption() == caption) else {
        return Err(Error::user(
            format!("`{caption}` is no caption of the drawn world"),
            "audit a simulation whose images were drawn by `federate simulate`",
        ));
    };
    let draw = |seed| rgb(&artist.draw(scene, seed).reduced(MODEL_SIDE));
    Ok((first_seed..).take(count).map(draw).collect())
}

/// Every 41st of the 400 scenes: ten, with all objects, colours and settings among them.
const SCENES_APART: usize = 41;

/// Seed of the other artists' scenes.
const OTHERS_SEED: u64 = 1;

/// The image as the model rooms take it.
pub(crate) fn rgb(image: &gallery::Image) -> RgbImage {
    let side = image.side();
    RgbImage::from_fn(side as u32, side as u32, |x, y| {
        let start = 3 * (y as usize * side + x as usize);
        Rgb([0, 1, 2].map(|channel| image.pixels()[start + channel]))
    })
}

/// Whether a training folder has a file of this name: `0001.png` and `0001.txt`.
fn is_drawn(file: &Path) -> bool {
    images::is_numbered(file, &["png", "txt"])
}

fn is_array(file: &Path) -> bool {
    [Path::new("pictures.npy"), Path::new("metadata.jsonl")].contains(&file)
}
