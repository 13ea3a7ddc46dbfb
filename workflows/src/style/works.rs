//! The works of a federation's artists, as the tower sees them: from folders, or of drawn artists.

use std::path::{Path, PathBuf};

use catelier_features::{Feature, ImageFeatures};
use catelier_gallery::export::MODEL_SIDE;
use catelier_gallery::{Artist, RandomStyle, Scene, Triple};
use catelier_numerics::noise::{Noise, Stream};
use catelier_style::federated::Participant;
use image::RgbImage;
use image::imageops;

use super::model::{read, report};
use crate::error::{Context, Error, Result};
use crate::session::Session;
use crate::{drawn, images};

/// Views of a work to learn from: as it is, mirrored, and two parts of it, one of them mirrored. Colours stay: they are style.
const VIEWS: usize = 4;

/// Least share of a side that a part keeps.
const SMALLEST_PART: f64 = 0.7;

/// Fewest pictures of an artist: two to learn from, and one that is held out.
const FEWEST: usize = 3;

/// Seeds of the public set's random styles begin here, apart from those that the embedded base was taught with.
const PUBLIC_STYLES: u64 = 7_000_000;

/// One work that can be seen.
enum Work {
    /// A picture in a file.
    File(PathBuf),
    /// A scene by a drawn artist.
    Drawn(&'static Artist, Triple, u64),
    /// A scene in a random style.
    Random(u64, Triple, u64),
}

impl Work {
    fn picture(&self) -> Result<RgbImage> {
        match self {
            Self::File(path) => read(path),
            Self::Drawn(artist, triple, seed) => Ok(drawn::rgb(&artist.draw(*triple, *seed).reduced(MODEL_SIDE))),
            Self::Random(style, triple, seed) => {
                let scene = Scene::draw(*triple, *seed);
                Ok(drawn::rgb(&RandomStyle::draw(*style).redraw_at(&scene, MODEL_SIDE)))
            }
        }
    }
}

/// An artist's works before they are looked at.
pub(super) struct Artists(Vec<(String, Vec<Work>)>);

impl Artists {
    /// The artists in a folder of folders.
    ///
    /// # Errors
    /// [`Error::User`] for a folder without artists, and an artist with fewer than three pictures.
    pub(super) fn in_folder(folder: &Path) -> Result<Self> {
        let mut artists = Vec::new();
        for path in images::folders(folder)? {
            drawn::refuse_part(&path)?;
            let pictures = images::paths(&path)?;
            if pictures.is_empty() {
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if pictures.len() < FEWEST {
                return Err(few_pictures(&name, pictures.len()));
            }
            artists.push((name, pictures.into_iter().map(Work::File).collect()));
        }
        match artists.is_empty() {
            true => Err(Error::user(
                format!("there is no artist in `{}`", folder.display()),
                "put the pictures of each artist into a folder with the artist's name",
            )),
            false => Ok(Self(artists)),
        }
    }

    /// Every drawn artist with so many works, of scenes of their own.
    pub(super) fn drawn(works: usize, seed: u64) -> Self {
        let by = |(number, artist): (usize, &'static Artist)| {
            let scenes = scenes(seed, number as u64, works).map(|(triple, seed)| Work::Drawn(artist, triple, seed));
            (artist.name.to_owned(), scenes.collect())
        };
        Self(Artist::all().iter().enumerate().map(by).collect())
    }

    /// So many random styles with so many works each.
    pub(super) fn random(styles: usize, works: usize, seed: u64) -> Self {
        let in_style = |number: usize| {
            let style = PUBLIC_STYLES + seed * 1000 + number as u64;
            let place = (Artist::all().len() + number) as u64;
            let scenes = scenes(seed, place, works).map(|(triple, seed)| Work::Random(style, triple, seed));
            (format!("random style {}", number + 1), scenes.collect())
        };
        Self((0..styles).map(in_style).collect())
    }

    /// The works as a tower sees them; of each artist, a share is held out.
    ///
    /// # Errors
    /// [`Error::User`] names a file that is no picture; [`Error::Cancelled`].
    pub(super) fn look(
        &self,
        tower: &dyn ImageFeatures,
        held_out: f64,
        seed: u64,
        session: &Session<'_>,
    ) -> Result<Vec<Participant>> {
        let total = self.0.iter().map(|(_, works)| works.len()).sum();
        let (mut done, mut participants) = (0, Vec::new());
        for (number, (name, works)) in self.0.iter().enumerate() {
            let split = split(works.len(), held_out, seed, number as u64);
            let mut participant = Participant { name: name.clone(), learn: Vec::new(), held_out: Vec::new() };
            for (work, is_held_out) in works.iter().zip(split) {
                report(session, done, total)?;
                let place = (number as u64) << 32 | done as u64;
                let mut views = seen(tower, &work.picture()?, is_held_out, seed, place)?;
                match is_held_out {
                    true => participant.held_out.append(&mut views),
                    false => participant.learn.push(views),
                }
                done += 1;
            }
            participants.push(participant);
        }
        report(session, done, total)?;
        Ok(participants)
    }
}

fn few_pictures(name: &str, found: usize) -> Error {
    let pictures = if found == 1 { "1 picture".to_owned() } else { format!("{found} pictures") };
    Error::user(
        format!(
            "`{name}` has {pictures}, and at least {FEWEST} are needed: two to learn from, and one that is held out"
        ),
        "give more pictures of the artist, or move the folder away",
    )
}

/// Scenes that an artist draws, each with its seed; no scene comes twice before all have come.
fn scenes(seed: u64, artist: u64, count: usize) -> impl Iterator<Item = (Triple, u64)> {
    let all: Vec<Triple> = Triple::all().collect();
    let places = Noise::new(seed).uniforms(Stream("style.scenes"), 0, artist, all.len());
    let mut order: Vec<(f64, Triple)> = places.into_iter().zip(all).collect();
    order.sort_by(|left, right| left.0.total_cmp(&right.0));
    let scenes: Vec<Triple> = order.into_iter().map(|(_, triple)| triple).cycle().take(count).collect();
    scenes.into_iter().zip(0u64..).map(move |(triple, work)| (triple, (seed << 40) + (artist << 20) + work))
}

/// Which works are held out: at least one, and two stay.
fn split(works: usize, share: f64, seed: u64, artist: u64) -> Vec<bool> {
    let count = ((works as f64 * share).round() as usize).clamp(1, works.saturating_sub(2).max(1));
    let places = Noise::new(seed).uniforms(Stream("style.held-out"), 0, artist, works);
    let mut order: Vec<usize> = (0..works).collect();
    order.sort_by(|left, right| places[*left].total_cmp(&places[*right]));
    let mut split = vec![false; works];
    order.into_iter().take(count).for_each(|work| split[work] = true);
    split
}

/// The features of a work's views; of a held-out work as it is alone.
fn seen(
    tower: &dyn ImageFeatures,
    picture: &RgbImage,
    is_held_out: bool,
    seed: u64,
    place: u64,
) -> Result<Vec<Feature>> {
    let mut views = vec![picture.clone()];
    if !is_held_out {
        let drawn = Noise::new(seed).uniforms(Stream("style.parts"), 0, place, 3 * (VIEWS - 2));
        views.push(imageops::flip_horizontal(picture));
        views.push(part(picture, &drawn[..3]));
        views.push(imageops::flip_horizontal(&part(picture, &drawn[3..])));
    }
    tower.image_features(&views.iter().collect::<Vec<_>>()).user_error("cannot look at the pictures")
}

/// A part of a picture with its proportions.
fn part(picture: &RgbImage, drawn: &[f64]) -> RgbImage {
    let share = SMALLEST_PART + (1.0 - SMALLEST_PART) * drawn[0];
    let side = |length: u32| ((f64::from(length) * share).round() as u32).clamp(1, length);
    let (width, height) = (side(picture.width()), side(picture.height()));
    let start = |drawn: f64, room: u32| (drawn * f64::from(room + 1)) as u32;
    let (left, top) = (start(drawn[1], picture.width() - width), start(drawn[2], picture.height() - height));
    imageops::crop_imm(picture, left, top, width, height).to_image()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_work_at_least_is_held_out_and_two_stay() {
        for works in 3..20 {
            for share in [0.0, 0.375, 0.9, 1.0] {
                let split = split(works, share, 1, 2);
                let count = split.iter().filter(|held_out| **held_out).count();
                assert!(count >= 1 && works - count >= 2, "{works} {share} {count}");
            }
        }
        assert_ne!(split(16, 0.4, 1, 0), split(16, 0.4, 2, 0));
    }

    #[test]
    fn scenes_come_once_before_they_come_again() {
        let found: Vec<_> = scenes(1, 3, 400).collect();
        let different: std::collections::BTreeSet<_> = found.iter().map(|(triple, _)| triple.caption()).collect();
        assert_eq!(different.len(), 400);
        assert_ne!(scenes(1, 4, 5).collect::<Vec<_>>(), found[..5]);
    }

    #[test]
    fn parts_lie_inside_and_keep_their_proportions() {
        let picture = RgbImage::new(100, 50);
        for drawn in [[0.0, 0.0, 0.0], [0.0, 0.999, 0.999], [0.999, 0.5, 0.5]] {
            let part = part(&picture, &drawn);
            assert!(part.width() >= 70 && part.width() == 2 * part.height(), "{:?}", part.dimensions());
        }
        assert_eq!(super::part(&RgbImage::new(1, 1), &[0.0, 0.9, 0.9]).dimensions(), (1, 1));
    }
}
