//! The search: scores by CSLS, which corrects for how crowded a place is.

use std::cmp::Ordering;

use catelier_features::Feature;
use serde::Serialize;

use super::{Gap, NEIGHBOURS, StyleIndex};
use crate::error::{Error, Result};
use crate::vectors::{dot, mean, mean_of_largest, unit};

/// Probability from which an artist fits.
pub const FITS_FROM: f64 = 0.5;

/// What a search found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Search {
    /// Whether an artist fits; `None` where scores have no probabilities.
    pub fits: Option<bool>,
    /// The best artists, best first.
    pub found: Vec<Found>,
}

/// An artist that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// The name.
    pub artist: String,
    /// CSLS: twice the cosine to the nearest prototype of the artist, minus the mean cosine of the reference to the 15
    /// nearest prototypes, minus that of the prototype to the 15 nearest of other artists. It ranks, and means nothing by
    /// itself.
    pub score: f64,
    /// The probability that a work with such a score is by the artist: see [`Calibration`](super::Calibration). `None` where
    /// there is none.
    pub probability: Option<f64>,
    /// What sets the artist apart.
    pub gap: Gap,
    /// Whether the model can tell the artist from the most similar one; `None` for an artist with one work.
    pub told_apart: Option<bool>,
    /// Number of works behind the prototypes.
    pub works: u64,
}

impl StyleIndex {
    /// The artists nearest to a reference, which may be several pictures of one style, given by their directions.
    ///
    /// # Errors
    /// [`Error::Width`]; [`Error::NoDirection`] for no references, and for references that cancel out.
    pub fn search(&self, references: &[Feature], top: usize) -> Result<Search> {
        if let Some(reference) = references.iter().find(|reference| reference.len() != self.width) {
            return Err(Error::Width { expected: self.width, found: reference.len() });
        }
        let query = unit(&mean(references.iter().map(Feature::as_slice)), "the references")?;
        let scores = self.scores(&query);
        let mut ranked: Vec<usize> = (0..scores.len()).collect();
        let better = |left: &usize, right: &usize| scores[*right].total_cmp(&scores[*left]).then(left.cmp(right));
        let top = top.min(ranked.len());
        if top < ranked.len() && top > 0 {
            ranked.select_nth_unstable_by(top - 1, better);
        }
        ranked.truncate(top);
        ranked.sort_by(better);
        let found: Vec<Found> = ranked.into_iter().map(|artist| self.found(artist, scores[artist])).collect();
        let fits = found.first().and_then(|best| best.probability).map(|best| best >= FITS_FROM);
        Ok(Search { fits, found })
    }

    fn found(&self, artist: usize, score: f32) -> Found {
        let own = &self.artists[artist];
        let score = f64::from(score);
        Found {
            artist: own.name.clone(),
            score,
            probability: self.calibration.as_ref().map(|calibration| calibration.probability(score)),
            gap: own.gap.clone(),
            told_apart: own.gap.is_told_apart(),
            works: own.prototypes.iter().map(|prototype| u64::from(prototype.count)).sum(),
        }
    }

    /// The score of every artist: that of its best prototype.
    fn scores(&self, query: &[f32]) -> Vec<f32> {
        let cosines = self.cosines(query);
        let crowded = mean_of_largest(&mut cosines.clone(), NEIGHBOURS);
        let mut scores = vec![f32::NEG_INFINITY; self.artists.len()];
        for (prototype, cosine) in cosines.iter().enumerate() {
            let score = &mut scores[self.owners[prototype] as usize];
            *score = score.max(2.0 * cosine - crowded - self.scales[prototype]);
        }
        scores
    }

    /// The cosine of every prototype.
    pub(super) fn cosines(&self, query: &[f32]) -> Vec<f32> {
        self.directions.chunks_exact(self.width).map(|direction| dot(direction, query)).collect()
    }

    /// The best score of an artist's own prototypes, and of the others' where that artist is not there; `cosines` are those
    /// of a work.
    pub(super) fn own_and_foreign(&self, cosines: &[f32], owner: u32) -> (f32, f32) {
        let crowded = mean_of_largest(&mut cosines.to_vec(), NEIGHBOURS);
        let is_foreign = |prototype: &usize| self.owners[*prototype] != owner;
        let mut foreign: Vec<f32> = (0..cosines.len()).filter(is_foreign).map(|prototype| cosines[prototype]).collect();
        let crowded_without = mean_of_largest(&mut foreign, NEIGHBOURS);
        let best = |own: bool, crowded: f32| {
            let chosen = (0..cosines.len()).filter(|prototype| is_foreign(prototype) != own);
            let scores = chosen.map(|prototype| 2.0 * cosines[prototype] - crowded - self.scales[prototype]);
            scores.max_by(|left, right| left.partial_cmp(right).unwrap_or(Ordering::Equal)).unwrap_or(f32::NEG_INFINITY)
        };
        (best(true, crowded), best(false, crowded_without))
    }
}
