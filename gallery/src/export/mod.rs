//! Images in bulk: a NumPy array with metadata, or a folder of captioned PNG files.

mod plan;

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use catelier_numerics::atomic;
use rayon::prelude::*;
use serde::Serialize;

use self::plan::Job;
use crate::error::{Error, Result};
use crate::render::Image;
use crate::styles::Artist;
use crate::vocabulary::{Colour, Object, Setting, Triple};

/// Width and height in pixels of the images that the embedded model generates.
pub const MODEL_SIDE: usize = 64;

/// The style of the images.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// The house style, in which the base model is trained.
    House,
    /// One artist.
    Artist(&'static Artist),
    /// Every artist, taking turns.
    MixedArtists,
    /// Random styles, taking turns, with their words in the captions.
    Family {
        /// Number of styles, at least 1. They are functions of the request's seed: another seed, other styles; more
        /// styles begin with the same ones.
        styles: usize,
    },
    /// Generic textures instead of scenes.
    Textures,
}

/// Which triples are painted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The 360 triples of base training.
    Train,
    /// The 40 triples kept out of it.
    HeldOut,
    /// All 400.
    All,
}

impl Split {
    fn contains(self, triple: Triple) -> bool {
        match self {
            Self::Train => !triple.held_out(),
            Self::HeldOut => triple.held_out(),
            Self::All => true,
        }
    }
}

/// Settings of an export.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The style of the images.
    pub source: Source,
    /// The triples that are painted.
    pub split: Split,
    /// Number of images.
    pub count: usize,
    /// The seed of the whole export.
    pub seed: u64,
    /// Width and height in pixels: 32, 64, 128 or 256.
    pub side: usize,
}

/// One line of `metadata.jsonl`.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Index of the image in `pictures.npy`.
    pub index: usize,
    /// The caption; empty for a texture.
    pub text: String,
    /// The object; none for a texture.
    pub object: Option<Object>,
    /// Its colour; none for a texture.
    pub colour: Option<Colour>,
    /// Its setting; none for a texture.
    pub setting: Option<Setting>,
    /// The artist's name, `house`, `family` or `texture`.
    pub artist: &'static str,
    /// Number of the random style, from zero; absent where another source drew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style: Option<usize>,
    /// The words of the random style; absent where another source drew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style_words: Option<Vec<&'static str>>,
    /// Whether the triple is kept out of base training.
    pub held_out: bool,
}

/// Number of images that are painted in parallel before they are written and the caller is asked whether to go on.
const BATCH: usize = 64;

/// Writes `pictures.npy` (`uint8 [count, side, side, 3]`, NumPy format 1.0) and `metadata.jsonl` into `dir`.
///
/// The same request gives the same bytes for any number of threads. Files of an earlier export are replaced. `observe`
/// gets the number of images that are painted, and stops the export by [`ControlFlow::Break`]; then nothing is written.
///
/// # Errors
/// [`Error::ImageSide`], [`Error::Folder`], [`Error::Write`] and [`Error::Cancelled`].
pub fn write_npy(dir: &Path, request: &Request, observe: &mut dyn FnMut(usize) -> ControlFlow<()>) -> Result<()> {
    if ![32, 64, 128, 256].contains(&request.side) {
        return Err(Error::ImageSide { side: request.side });
    }
    make(dir)?;
    let jobs = plan::rounds(request);
    let mut stopped = false;
    let written = atomic::write(dir.join("pictures.npy"), |file| {
        file.write_all(&npy_header(request.count, request.side))?;
        for (batch, done) in in_batches(&jobs) {
            let painted: Vec<Image> = batch.par_iter().map(|job| job.paint(request.side)).collect();
            painted.iter().try_for_each(|image| file.write_all(image.pixels()))?;
            stopped = observe(done).is_break();
            if stopped {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(())
    });
    if stopped {
        return Err(Error::Cancelled);
    }
    written?;
    atomic::write(dir.join("metadata.jsonl"), |file| {
        jobs.iter().try_for_each(|job| writeln!(file, "{}", serde_json::to_string(&job.entry())?))
    })?;
    Ok(())
}

/// Writes a training folder: `count` images from `source` as `0001.png`, each with its caption in `0001.txt`.
///
/// Images are [`MODEL_SIDE`] pixels wide and high. Objects, colours and settings take turns, so that ten images already
/// show every object once. The same arguments give the same bytes for any number of threads. `observe` gets the number of
/// images that are written, and stops the export by [`ControlFlow::Break`].
///
/// # Errors
/// [`Error::FileExists`] if one of the files is there already; then nothing is drawn. [`Error::Folder`],
/// [`Error::Write`] and [`Error::Cancelled`].
pub fn write_folder(
    dir: &Path,
    source: Source,
    count: usize,
    seed: u64,
    observe: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<()> {
    make(dir)?;
    let file = |index: usize, extension: &str| dir.join(format!("{:04}.{extension}", index + 1));
    let mut files = (0..count).flat_map(|index| [file(index, "png"), file(index, "txt")]);
    if let Some(path) = files.find(|path| path.exists()) {
        return Err(Error::FileExists { path });
    }
    for (batch, done) in in_batches(&plan::in_turns(source, count, seed)) {
        batch.par_iter().try_for_each(|job| write_pair(job, &file))?;
        if observe(done).is_break() {
            return Err(Error::Cancelled);
        }
    }
    Ok(())
}

/// Draws one image, and writes it and its caption where `file` says by its index and the extension.
fn write_pair(job: &Job, file: &(dyn Fn(usize, &str) -> PathBuf + Sync)) -> Result<()> {
    job.paint(MODEL_SIDE).write_png(&file(job.index, "png"))?;
    atomic::write(file(job.index, "txt"), |out| writeln!(out, "{}", job.entry().text))?;
    Ok(())
}

/// Parts of the jobs, each with the number of jobs that are done after it.
fn in_batches(jobs: &[Job]) -> impl Iterator<Item = (&[Job], usize)> {
    jobs.chunks(BATCH).scan(0, |done, batch| {
        *done += batch.len();
        Some((batch, *done))
    })
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|source| Error::Folder { path: dir.to_owned(), source })
}

/// The header of NumPy format 1.0 for `uint8 [count, side, side, 3]` in C order, padded to 64 bytes.
fn npy_header(count: usize, side: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, {side}, {side}, 3), }}");
    let padded = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.push_str(&" ".repeat(padded - 1 - text.len()));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend_from_slice(&(text.len() as u16).to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    mod golden {
        use super::*;

        #[test]
        fn npy_header_is_the_one_numpy_writes() {
            let expected: &[u8] = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (5, 64, 64, 3), }                                                  \n";
            assert_eq!(npy_header(5, 64), expected);
        }
    }

    #[test]
    fn npy_header_fills_whole_blocks_of_64_bytes() {
        for count in [0, 1, 99_999, 1_000_000_000] {
            assert_eq!(npy_header(count, 256).len() % 64, 0, "{count} images");
        }
    }
}
