//! The index of a site: every artist's prototypes, what sets the artist apart, and how scores become probabilities.

mod calibration;
mod file;
mod gap;
mod search;

use std::collections::BTreeSet;

use catelier_features::Feature;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use calibration::Calibration;
pub use file::{INDEX_FORMAT, INDEX_VERSION};
pub use gap::Gap;
pub use search::{FITS_FROM, Found, Search};

use crate::error::{Error, LONGEST_NAME, Result};
use crate::model::{ModelId, StyleHead, StyleModel};
use crate::prototype::{Prototype, prototypes};
use crate::vectors::{dot, mean_of_largest};
use gap::Means;

/// Neighbours over which the local scale of a direction is measured; 15, as in CSD+ (arXiv 2605.09030).
pub const NEIGHBOURS: usize = 15;

/// Works are the same if their directions agree to this.
const SAME: f32 = 1.0 - 1e-5;

/// An artist as it is brought to an index.
#[derive(Debug, Clone, Default)]
pub struct Artist {
    /// The name.
    pub name: String,
    /// What stands for the works.
    pub prototypes: Vec<Prototype>,
    /// The directions of the works, where they are at hand; they do not go into the index.
    pub works: Vec<Feature>,
    /// For every work, the prototype that it counts for.
    pub groups: Vec<usize>,
}

impl Artist {
    /// An artist with works, given by their directions, and at most `most` prototypes for them.
    ///
    /// # Errors
    /// [`Error::NoWorks`], [`Error::NoDirection`], [`Error::Setting`].
    pub fn of_works(name: impl Into<String>, works: Vec<Feature>, most: usize) -> Result<Self> {
        let name = name.into();
        let (prototypes, groups) = prototypes(&name, &works, most)?;
        Ok(Self { name, prototypes, works, groups })
    }

    /// The same artist with noise on its prototype, as [`Prototype::with_noise`] adds it. The works at hand still measure
    /// the artist's gap.
    ///
    /// # Errors
    /// [`Error::NoiseOnClusters`] for more than one prototype; those of [`Prototype::with_noise`].
    pub fn with_noise(mut self, sigma: f64, seed: u64, number: u64) -> Result<Self> {
        let [prototype] = self.prototypes.as_slice() else {
            return Err(Error::NoiseOnClusters { prototypes: self.prototypes.len() });
        };
        self.prototypes = vec![prototype.with_noise(&self.name, sigma, seed, number)?];
        Ok(self)
    }

    fn check(&self, width: usize) -> Result<()> {
        check_name(&self.name)?;
        if self.prototypes.is_empty() {
            return Err(Error::NoWorks { artist: self.name.clone() });
        }
        self.prototypes.iter().try_for_each(|prototype| prototype.check(&self.name, width))
    }
}

/// To six decimals, so that a value that is written as JSON is read back to the bit.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// Refuses a name that is empty, long, or would not fit in one line.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let fits = (1..=LONGEST_NAME).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(Error::Name { name: name.to_owned() }) }
}

/// Where an artist's adapter is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterLink {
    /// The file, relative to the index's folder.
    pub path: String,
    /// The hash of its tensors, by which it is known again.
    pub hash: String,
}

/// An artist in an index.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexedArtist {
    /// The name.
    pub name: String,
    /// What stands for the works.
    pub prototypes: Vec<Prototype>,
    /// What sets the works apart from those of the most similar artist.
    pub gap: Gap,
    /// The artist's adapter.
    pub adapter: Option<AdapterLink>,
}

/// A searchable index of artists.
#[derive(Debug, Clone)]
pub struct StyleIndex {
    model: ModelId,
    head: Option<StyleHead>,
    width: usize,
    artists: Vec<IndexedArtist>,
    /// The prototypes' directions, one after the other.
    directions: Vec<f32>,
    /// The artist of every prototype.
    owners: Vec<u32>,
    /// The local scale of every prototype: its mean cosine to the nearest of other artists.
    scales: Vec<f32>,
    calibration: Option<Calibration>,
}

impl StyleIndex {
    /// An index of these artists, sorted by name. Scores become probabilities where enough of the artists' works are at hand.
    ///
    /// # Errors
    /// [`Error::FewArtists`], [`Error::SameName`], [`Error::Name`], [`Error::NoWorks`], [`Error::Prototype`],
    /// [`Error::SameWorks`].
    pub fn build(model: &StyleModel, artists: Vec<Artist>) -> Result<Self> {
        Self::of(model.id().clone(), model.head().cloned(), artists)
    }

    pub(crate) fn of(model: ModelId, head: Option<StyleHead>, mut artists: Vec<Artist>) -> Result<Self> {
        artists.sort_by(|left, right| left.name.cmp(&right.name));
        let width = check_all(&artists)?;
        let means = Means::of(&artists, width);
        let gaps: Vec<Gap> =
            (0..artists.len()).into_par_iter().map(|index| gap::gap(&artists, &means, index)).collect();
        refuse_same_works(&artists, &gaps)?;
        let mut index = Self::without_scales(model, head, width, indexed(&artists, gaps));
        index.scales = index.local_scales();
        index.calibration = calibration::calibrate(&index, &artists);
        Ok(index)
    }

    /// The index of these artists before the scales are measured.
    fn without_scales(model: ModelId, head: Option<StyleHead>, width: usize, artists: Vec<IndexedArtist>) -> Self {
        let prototypes = || {
            artists.iter().enumerate().flat_map(|(owner, artist)| artist.prototypes.iter().map(move |own| (owner, own)))
        };
        let directions = prototypes().flat_map(|(_, own)| own.direction.iter().copied()).collect();
        let owners = prototypes().map(|(owner, _)| owner as u32).collect();
        Self { model, head, width, artists, directions, owners, scales: Vec::new(), calibration: None }
    }

    /// The style model that directions come from.
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// The style model's head, which the index carries along.
    pub fn head(&self) -> Option<&StyleHead> {
        self.head.as_ref()
    }

    /// The artists, sorted by name.
    pub fn artists(&self) -> &[IndexedArtist] {
        &self.artists
    }

    /// How scores become probabilities; `None` where too few works were at hand.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_ref()
    }

    /// The artist of this name.
    ///
    /// # Errors
    /// [`Error::UnknownArtist`] names the most similar name.
    pub fn artist(&self, name: &str) -> Result<&IndexedArtist> {
        let found = self.artists.binary_search_by(|artist| artist.name.as_str().cmp(name));
        found.map(|index| &self.artists[index]).map_err(|_| {
            let starts_alike = |artist: &&IndexedArtist| {
                let (own, asked) = (artist.name.to_lowercase(), name.to_lowercase());
                !asked.is_empty() && (own.starts_with(&asked) || asked.starts_with(&own))
            };
            let nearest = self.artists.iter().find(starts_alike).map(|artist| artist.name.clone());
            Error::UnknownArtist { name: name.to_owned(), nearest }
        })
    }

    /// Notes where an artist's adapter is.
    ///
    /// # Errors
    /// As [`artist`](Self::artist).
    pub fn link(&mut self, name: &str, adapter: AdapterLink) -> Result<()> {
        self.artist(name)?;
        let artist = self.artists.iter_mut().find(|artist| artist.name == name);
        artist.into_iter().for_each(|artist| artist.adapter = Some(adapter.clone()));
        Ok(())
    }

    /// Every artist's prototypes' mean cosine to the nearest prototypes of other artists.
    fn local_scales(&self) -> Vec<f32> {
        let scale = |own: usize| {
            let foreign = (0..self.owners.len()).filter(|other| self.owners[*other] != self.owners[own]);
            let mut cosines: Vec<f32> = foreign.map(|other| dot(self.direction(own), self.direction(other))).collect();
            mean_of_largest(&mut cosines, NEIGHBOURS)
        };
        (0..self.owners.len()).into_par_iter().map(scale).collect()
    }

    fn direction(&self, prototype: usize) -> &[f32] {
        &self.directions[prototype * self.width..(prototype + 1) * self.width]
    }
}

fn indexed(artists: &[Artist], gaps: Vec<Gap>) -> Vec<IndexedArtist> {
    let pairs = artists.iter().zip(gaps);
    let indexed = |(artist, gap): (&Artist, Gap)| IndexedArtist {
        name: artist.name.clone(),
        prototypes: artist.prototypes.clone(),
        gap,
        adapter: None,
    };
    pairs.map(indexed).collect()
}

/// Checks names and prototypes; the width of all directions.
fn check_all(artists: &[Artist]) -> Result<usize> {
    if artists.len() < 2 {
        return Err(Error::FewArtists { found: artists.len() });
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = artists.iter().find(|artist| !names.insert(artist.name.as_str())) {
        return Err(Error::SameName { name: twice.name.clone() });
    }
    let width = artists[0].prototypes.first().map_or(0, |prototype| prototype.direction.len());
    artists.iter().try_for_each(|artist| artist.check(width))?;
    Ok(width)
}

/// Refuses an artist all of whose works, or prototypes where there are none at hand, are those of the most similar artist.
fn refuse_same_works(artists: &[Artist], gaps: &[Gap]) -> Result<()> {
    for (artist, gap) in artists.iter().zip(gaps) {
        let Some(rival) = artists.iter().find(|other| other.name == gap.rival) else { continue };
        let has = |other: &Artist, work: &[f32]| other.works.iter().any(|own| dot(own, work) > SAME);
        let same = match artist.works.is_empty() || rival.works.is_empty() {
            false => artist.works.iter().all(|work| has(rival, work)),
            true => artist.prototypes.iter().all(|own| rival.prototypes.iter().any(|other| is_same(own, other))),
        };
        if same {
            let (first, second) = (artist.name.clone(), rival.name.clone());
            return Err(Error::SameWorks { first, second });
        }
    }
    Ok(())
}

fn is_same(left: &Prototype, right: &Prototype) -> bool {
    left.count == right.count && dot(&left.direction, &right.direction) > SAME
}
