//! The closest pairs as a sheet, to look at: a training image, the nearest drawn one, and the held-out image nearest to that.

use catelier_pipelines::generation::image_file;
use catelier_pipelines::generation::sheet::{Sheet, SheetRow};

use super::attack::{HandedOut, Knows};
use super::victim::{Attacked, Drawn};
use crate::error::{Context, Result};
use crate::event::ArtefactKind;
use crate::output::OutputFolder;
use crate::session::Session;

/// Pairs on a sheet.
const PAIRS: usize = 8;

/// Side of an image on a sheet, in pixels.
const CELL: u32 = 192;

/// Name of an artist's sheet.
pub(super) fn name(artist: &str) -> String {
    format!("{artist}.png")
}

/// Writes a sheet for each artist that was attacked: of all that was drawn by who was handed `rounds` and knew the captions.
pub(super) fn write(
    out: &OutputFolder,
    rounds: &HandedOut,
    attacked: &[Attacked],
    session: &Session<'_>,
) -> Result<()> {
    for one in attacked {
        let Some(sheet) = sheet(one, rounds) else { continue };
        let file = out.path().join(name(&one.victim.artist));
        let image = sheet.compose().failed("cannot draw the sheet")?;
        image_file::write_png(&file, &image, None).failed("cannot save the sheet")?;
        session.written(ArtefactKind::Sheet, file);
    }
    Ok(())
}

/// `None` where nothing was drawn.
fn sheet(one: &Attacked, rounds: &HandedOut) -> Option<Sheet> {
    let drawn = one.drawn_by(Some(rounds), Knows::Captions);
    let (nearness, _) = one.nearness(Some(rounds), Knows::Captions)?;
    let (excess, _) = nearness.excess();
    let mut order: Vec<usize> = (0..excess.len()).collect();
    order.sort_by(|left, right| excess[*right].total_cmp(&excess[*left]));
    let row = |member: &usize| {
        let nearest = nearness.members[*member];
        let (part, place) = located(&drawn, nearest.drawn)?;
        let held_out = one.compared.nearest_held_out(*member, &part.features[place]);
        let (caption, image) = (&one.victim.captions[*member], &one.victim.images[*member]);
        let label = format!("{caption}: {:.3}, held-out {:.3}", nearest.similarity, held_out.similarity);
        let images = [image, &part.images[place], &one.victim.held_out[*member][held_out.drawn]];
        Some(SheetRow { label, images: images.map(|image| Some(image.clone())).to_vec() })
    };
    Some(Sheet {
        title: one.victim.artist.clone(),
        subtitle: "similarity of the drawn image to the training image, and to the nearest held-out one".into(),
        columns: ["training image", "nearest drawn", "held-out"].map(str::to_owned).to_vec(),
        rows: order.iter().take(PAIRS).filter_map(row).collect(),
        cell: CELL,
    })
}

/// The part and the place in it of an image that is counted through all parts.
fn located<'d>(parts: &[&'d Drawn], mut place: usize) -> Option<(&'d Drawn, usize)> {
    for part in parts {
        if place < part.images.len() {
            return Some((part, place));
        }
        place -= part.images.len();
    }
    None
}
