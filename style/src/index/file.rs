//! The index as one file: directions as tensors, the rest in its header, with a checksum over all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{Device, Tensor};
use catelier_numerics::tensor_file::{self, TensorFile};
use serde::{Deserialize, Serialize};

use super::{AdapterLink, Calibration, Gap, IndexedArtist, StyleIndex, check_name};
use crate::error::{Error, Result};
use crate::model::{StyleHead, finite_tensor, from_json, open_checked, to_json, unusable};
use crate::prototype::Prototype;

/// Name of the index's file format, in its header.
pub const INDEX_FORMAT: &str = "catelier style index";

/// Version of that format.
pub const INDEX_VERSION: &str = "1";

const DIRECTIONS: &str = "directions";
const CONCENTRATIONS: &str = "concentrations";
const SCALES: &str = "scales";

/// An artist in the header.
#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    /// Number of works of each prototype.
    counts: Vec<u32>,
    gap: Gap,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adapter: Option<AdapterLink>,
}

impl StyleIndex {
    /// Writes the index to one file atomically.
    ///
    /// # Errors
    /// [`Error::Numerics`] if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let entry = |artist: &IndexedArtist| Entry {
            name: artist.name.clone(),
            counts: artist.prototypes.iter().map(|prototype| prototype.count).collect(),
            gap: artist.gap.clone(),
            adapter: artist.adapter.clone(),
        };
        let entries: Vec<Entry> = self.artists.iter().map(entry).collect();
        let header = BTreeMap::from([
            ("format".to_owned(), INDEX_FORMAT.to_owned()),
            ("version".to_owned(), INDEX_VERSION.to_owned()),
            ("model".to_owned(), to_json(path, &self.model)?),
            ("artists".to_owned(), to_json(path, &entries)?),
            ("calibration".to_owned(), to_json(path, &self.calibration)?),
        ]);
        let written = tensor_file::write_checked(path, &self.tensors()?, &header);
        written.map_err(Error::numerics(format!("writing `{}`", path.display())))
    }

    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let failed = || Error::tensor("an index");
        let prototypes = self.owners.len();
        let directions =
            Tensor::from_slice(&self.directions, (prototypes, self.width), &Device::Cpu).map_err(failed())?;
        let concentrations: Vec<f32> =
            self.artists.iter().flat_map(|artist| &artist.prototypes).map(|own| own.concentration).collect();
        let vector = |values: &[f32]| Tensor::new(values, &Device::Cpu).map_err(failed());
        let mut tensors = BTreeMap::from([
            (DIRECTIONS.to_owned(), directions),
            (CONCENTRATIONS.to_owned(), vector(&concentrations)?),
            (SCALES.to_owned(), vector(&self.scales)?),
        ]);
        if let Some(head) = &self.head {
            tensors.extend(head.tensors()?);
        }
        Ok(tensors)
    }

    /// Reads an index.
    ///
    /// # Errors
    /// [`Error::File`] for a file that is damaged, no index, of another version, or holds what no index can; [`Error::Numerics`]
    /// for one that cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        let file = open_checked(path, INDEX_FORMAT, INDEX_VERSION)?;
        let entries: Vec<Entry> = from_json(path, &file, "artists")?;
        let (directions, width) = directions(path, &file)?;
        let prototypes = directions.len() / width;
        let concentrations = vector(path, &file, CONCENTRATIONS, prototypes)?;
        let scales = vector(path, &file, SCALES, prototypes)?;
        if entries.iter().map(|entry| entry.counts.len()).sum::<usize>() != prototypes {
            return Err(unusable(path, format!("its header does not account for its {prototypes} prototypes")));
        }
        let mut rows = directions.chunks_exact(width).zip(concentrations);
        let artists = entries.into_iter().map(|entry| entry.artist(&mut rows)).collect();
        let head = StyleHead::of_file(path, &file)?;
        let index = Self::without_scales(from_json(path, &file, "model")?, head, width, artists);
        let index = Self { scales, calibration: from_json(path, &file, "calibration")?, ..index };
        index.check(path)?;
        Ok(index)
    }

    /// Refuses what no index holds.
    fn check(&self, path: &Path) -> Result<()> {
        let wrong = |error: Error| unusable(path, error.to_string());
        let names: BTreeSet<&str> = self.artists.iter().map(|artist| artist.name.as_str()).collect();
        let is_sorted = self.artists.windows(2).all(|pair| pair[0].name < pair[1].name);
        if self.artists.len() < 2 || !is_sorted {
            return Err(unusable(path, "it does not hold two or more artists, sorted by name".to_owned()));
        }
        for artist in &self.artists {
            check_name(&artist.name).map_err(wrong)?;
            artist.prototypes.iter().try_for_each(|own| own.check(&artist.name, self.width)).map_err(wrong)?;
            if artist.prototypes.is_empty() || !names.contains(artist.gap.rival.as_str()) {
                return Err(unusable(path, format!("`{}` lacks a prototype, or is compared with nobody", artist.name)));
            }
        }
        let head = self.head.as_ref().map(StyleHead::sha256).transpose()?;
        if head != self.model.head || self.head.as_ref().is_some_and(|head| head.width() != self.width) {
            return Err(unusable(path, "its head is not that of its style model".to_owned()));
        }
        let is_usable = |own: &Calibration| own.slope.is_finite() && own.intercept.is_finite() && own.slope > 0.0;
        match self.calibration.as_ref().is_none_or(is_usable) {
            true => Ok(()),
            false => Err(unusable(path, "its scores have no probabilities".to_owned())),
        }
    }
}

impl Entry {
    fn artist<'r>(self, rows: &mut impl Iterator<Item = (&'r [f32], f32)>) -> IndexedArtist {
        let prototype = |(count, (direction, concentration)): (u32, (&[f32], f32))| Prototype {
            direction: direction.to_vec(),
            count,
            concentration,
        };
        let prototypes = self.counts.into_iter().zip(rows).map(prototype).collect();
        IndexedArtist { name: self.name, prototypes, gap: self.gap, adapter: self.adapter }
    }
}

/// All directions one after the other, and the width of one.
fn directions(path: &Path, file: &TensorFile) -> Result<(Vec<f32>, usize)> {
    let directions = finite_tensor(path, file, DIRECTIONS)?;
    match directions.dims() {
        [rows, width] if *rows > 0 && *width > 0 => {
            let width = *width;
            let values = directions.flatten_all().and_then(|directions| directions.to_vec1());
            Ok((values.map_err(Error::tensor("directions"))?, width))
        }
        dims => Err(unusable(path, format!("its directions have the shape {dims:?}"))),
    }
}

fn vector(path: &Path, file: &TensorFile, name: &str, count: usize) -> Result<Vec<f32>> {
    let values = finite_tensor(path, file, name)?;
    match values.dims() == [count] {
        true => values.to_vec1().map_err(Error::tensor("an index")),
        false => Err(unusable(path, format!("`{name}` has the shape {:?}, expected {count} values", values.dims()))),
    }
}
