//! `style search`: the artists nearest to pictures that a buyer shows.

use std::path::{Path, PathBuf};

use catelier_pipelines::generation::image_file;
use catelier_pipelines::generation::sheet::{Sheet, SheetRow};
use catelier_style::{Found, StyleIndex};
use image::RgbImage;
use serde::Serialize;

use super::model::{look, of_index, read};
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::images;
use crate::output;
use crate::session::Session;

/// Pictures in a row of a sheet.
const ACROSS: usize = 5;

/// Side in pixels to which small pictures are enlarged on a sheet.
const CELL_PX: u32 = 160;

/// A search as it is asked for.
#[derive(Debug, Clone, Default)]
pub struct SearchRequest {
    /// Pictures in the style that is looked for.
    pub references: Vec<PathBuf>,
    /// The index.
    pub index: PathBuf,
    /// Folder of the index's tower; `None` for the embedded one.
    pub tower: Option<PathBuf>,
    /// Number of artists to show.
    pub top: usize,
    /// A sheet of pictures to write.
    pub sheet: Option<PathBuf>,
    /// Folder with a folder of pictures for each artist, for the sheet: an index holds none.
    pub pictures: Option<PathBuf>,
    /// Replace the file `sheet`.
    pub force: bool,
}

/// What a search found, as `style search --json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchReport {
    /// Number of artists that were searched.
    pub artists: usize,
    /// Whether an artist fits; `null` where scores have no probabilities.
    pub fits: Option<bool>,
    /// The best artists, best first.
    pub found: Vec<Found>,
}

/// Searches as `request` says.
///
/// # Errors
/// [`Error::User`] for an index, a tower or a reference that cannot be used; [`Error::Failed`] when the disk fails.
pub fn search(request: &SearchRequest, session: &Session<'_>) -> Result<SearchReport> {
    request.check()?;
    let index = StyleIndex::load(&request.index).user_error("cannot use the index")?;
    let model = of_index(&index, request.tower.as_deref())?;
    let references = look(&model, &request.references, session)?;
    let search = index.search(&references, request.top).user_error("cannot search for these references")?;
    let report = SearchReport { artists: index.artists().len(), fits: search.fits, found: search.found };
    if let (Some(sheet), Some(pictures)) = (&request.sheet, &request.pictures) {
        let page = sheet_of(&report, &request.references, pictures)?;
        image_file::write_png(sheet, &page, None).failed("cannot save the sheet")?;
        session.written(ArtefactKind::Sheet, sheet);
    }
    Ok(report)
}

impl SearchRequest {
    fn check(&self) -> Result<()> {
        if self.references.is_empty() {
            return Err(Error::user("there is no reference", "give a picture in the style by `--reference FILE`"));
        }
        if self.top == 0 {
            return Err(Error::user("`--top` is 0", "ask for at least one artist"));
        }
        if self.sheet.is_some() && self.pictures.is_none() {
            return Err(Error::user(
                "a sheet needs pictures, and an index holds none",
                "give a folder with a folder of pictures for each artist by `--pictures DIR`",
            ));
        }
        self.sheet.as_deref().map_or(Ok(()), |sheet| output::new_file(sheet, self.force))
    }
}

/// The references, and below them every artist that was found with some pictures.
fn sheet_of(report: &SearchReport, references: &[PathBuf], pictures: &Path) -> Result<RgbImage> {
    let row = |label: String, files: &[PathBuf]| {
        let mut images = files.iter().take(ACROSS).map(|file| read(file).map(Some)).collect::<Result<Vec<_>>>()?;
        images.resize(ACROSS, None);
        Ok(SheetRow { label, images })
    };
    let mut rows = vec![row(if references.len() == 1 { "reference" } else { "references" }.to_owned(), references)?];
    for (place, found) in report.found.iter().enumerate() {
        let folder = pictures.join(&found.artist);
        // A name from an index may be any text, such as `..`; only a folder of this very name in `pictures` is looked at.
        let is_inside = folder.parent() == Some(pictures) && folder.file_name() == Some(found.artist.as_ref());
        let files = if is_inside && folder.is_dir() { images::paths(&folder)? } else { Vec::new() };
        rows.push(row(label(place + 1, found), &files)?);
    }
    let sheet = Sheet {
        title: title(report),
        subtitle: subtitle(report),
        columns: vec![String::new(); ACROSS],
        rows,
        cell: CELL_PX,
    };
    sheet.compose().user_error("cannot compose the sheet")
}

/// What the search says, in a few words.
fn title(report: &SearchReport) -> String {
    match (report.fits, report.found.first()) {
        (Some(true), Some(best)) => format!("{} fits", best.artist),
        (Some(false), _) => "no artist here fits".to_owned(),
        (_, Some(best)) => format!("{} is nearest", best.artist),
        _ => String::new(),
    }
}

/// What the numbers beside the names are.
fn subtitle(report: &SearchReport) -> String {
    let numbers = if report.fits.is_some() { ", and the probability that each drew the reference" } else { "" };
    format!("the nearest of {} artists{numbers}", report.artists)
}

fn label(place: usize, found: &Found) -> String {
    let probability = found.probability.map_or(String::new(), |probability| format!(" {probability:.2}"));
    let rival = match found.told_apart {
        Some(false) => format!(", not told from {}", found.gap.rival),
        _ => String::new(),
    };
    format!("{place}. {}{probability}{rival}", found.artist)
}
