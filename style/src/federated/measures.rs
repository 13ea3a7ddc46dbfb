//! Measures of a style model: can it find the artist of a work that it has not seen?

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::rows::{Prepared, Seen};
use crate::error::{Error, Result};
use crate::index::rounded;
use crate::losses::unit_rows;

/// Measures over the held-out works, each from 0 to 1.
///
/// A held-out work is a query. Artists are ranked by the cosine to their prototype, the mean of their works to learn from;
/// works are ranked by their own cosine. Where artists have models of their own, each artist's model gives that artist's
/// cosines.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Share of queries whose artist is first; also recall at 1.
    pub accuracy: f64,
    /// The harmonic mean of precision and recall, averaged over the artists.
    pub macro_f1: f64,
    /// Mean average precision over all works to learn from, of which those of the query's artist are relevant.
    pub mean_average_precision: f64,
    /// Share of queries whose artist is among the first five.
    pub recall_at_5: f64,
}

/// Measures one model for all, or one model for each client.
pub(super) fn measure(models: &[Seen], prepared: &Prepared) -> Result<Measures> {
    let artists = prepared.clients.len();
    let labels: Vec<usize> = prepared.all.works.iter().map(|work| work.label as usize).collect();
    let queries = prepared.query_labels.len();
    let (mut to_artists, mut to_works) = (vec![vec![0f32; artists]; queries], vec![vec![0f32; labels.len()]; queries]);
    for (index, model) in models.iter().enumerate() {
        let (prototypes, works) = cosines(model, &labels, artists).map_err(Error::tensor("cosines"))?;
        // One model for all gives all columns, the model of one client that client's.
        let is_its = |artist: usize| models.len() == 1 || artist == index;
        for query in 0..queries {
            (0..artists)
                .filter(|artist| is_its(*artist))
                .for_each(|artist| to_artists[query][artist] = prototypes[query][artist]);
            let its_works = (0..labels.len()).filter(|work| is_its(labels[*work]));
            its_works.for_each(|work| to_works[query][work] = works[query][work]);
        }
    }
    Ok(Measures::of(&to_artists, &to_works, &labels, &prepared.query_labels))
}

/// Cosines `[query][artist]` or `[query][work]`.
type Cosines = Vec<Vec<f32>>;

/// Cosines of the queries to the artists' prototypes and to all works.
fn cosines(model: &Seen, labels: &[usize], artists: usize) -> candle_core::Result<(Cosines, Cosines)> {
    let mean = |artist: usize| {
        let own: Vec<u32> = (0u32..).zip(labels).filter(|(_, label)| **label == artist).map(|(work, _)| work).collect();
        let own = Tensor::new(own, model.works.device())?;
        model.works.index_select(&own, 0)?.mean_keepdim(0)
    };
    let means = (0..artists).map(mean).collect::<candle_core::Result<Vec<_>>>()?;
    let prototypes = unit_rows(&Tensor::cat(&means, 0)?)?;
    let to = |others: &Tensor| model.queries.matmul(&others.t()?)?.to_vec2::<f32>();
    Ok((to(&prototypes)?, to(&model.works)?))
}

impl Measures {
    /// The measures of cosines `[query][artist]` and `[query][work]`, where `works` and `queries` name the artists.
    pub(super) fn of(to_artists: &[Vec<f32>], to_works: &[Vec<f32>], works: &[usize], queries: &[usize]) -> Self {
        let ranks: Vec<usize> = to_artists.iter().zip(queries).map(|(scores, own)| rank(scores, *own)).collect();
        let among = |most: usize| ranks.iter().filter(|rank| **rank < most).count() as f64 / ranks.len() as f64;
        let first: Vec<usize> = to_artists.iter().map(|scores| ranked(scores)[0]).collect();
        let precisions = to_works.iter().zip(queries).map(|(scores, own)| average_precision(scores, works, *own));
        Self {
            accuracy: rounded(among(1)),
            macro_f1: rounded(macro_f1(&first, queries)),
            mean_average_precision: rounded(precisions.sum::<f64>() / queries.len() as f64),
            recall_at_5: rounded(among(5)),
        }
    }
}

/// Positions from the highest value to the lowest; of equal ones, the first comes last, so that a model to which all are
/// alike gains nothing by their order.
fn ranked(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|left, right| values[*right].total_cmp(&values[*left]).then(right.cmp(left)));
    order
}

/// Number of the others whose value is as high or higher.
fn rank(values: &[f32], own: usize) -> usize {
    values.iter().enumerate().filter(|(other, value)| *other != own && **value >= values[own]).count()
}

fn average_precision(scores: &[f32], works: &[usize], own: usize) -> f64 {
    let (mut found, mut sum) = (0, 0.0);
    for (place, work) in ranked(scores).into_iter().enumerate() {
        if works[work] == own {
            found += 1;
            sum += f64::from(found) / (place + 1) as f64;
        }
    }
    if found == 0 { 0.0 } else { sum / f64::from(found) }
}

fn macro_f1(predicted: &[usize], actual: &[usize]) -> f64 {
    let mut artists: Vec<usize> = actual.to_vec();
    artists.sort_unstable();
    artists.dedup();
    let f1 = |artist: &usize| {
        let count = |of: &[usize]| of.iter().filter(|label| *label == artist).count();
        let both = predicted.iter().zip(actual).filter(|(left, right)| left == right && *left == artist).count();
        2.0 * both as f64 / (count(predicted) + count(actual)) as f64
    };
    artists.iter().map(f1).sum::<f64>() / artists.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_agree_with_sums_done_by_hand() {
        // Queries of artists 0, 0, 1; the second is taken for artist 1.
        let to_artists = [vec![0.9, 0.1], vec![0.2, 0.3], vec![0.1, 0.8]];
        let works = [0, 0, 1];
        let to_works = [vec![0.9, 0.1, 0.5], vec![0.1, 0.2, 0.3], vec![0.0, 0.1, 0.9]];
        let measures = Measures::of(&to_artists, &to_works, &works, &[0, 0, 1]);
        assert!((measures.accuracy - 2.0 / 3.0).abs() < 1e-6);
        // Both artists: precision and recall 1 and 1/2, and the other way round.
        assert!((measures.macro_f1 - 2.0 / 3.0).abs() < 1e-6);
        let precisions = [(1.0 + 2.0 / 3.0) / 2.0, (1.0 / 2.0 + 2.0 / 3.0) / 2.0, 1.0];
        assert!((measures.mean_average_precision - precisions.iter().sum::<f64>() / 3.0).abs() < 1e-6);
        assert_eq!(measures.recall_at_5, 1.0);
    }

    #[test]
    fn a_model_to_which_all_are_alike_finds_nobody() {
        let alike = vec![vec![0.5; 8]; 2];
        let works: Vec<usize> = (0..8).collect();
        let measures = Measures::of(&alike, &alike, &works, &[0, 1]);
        assert_eq!((measures.accuracy, measures.macro_f1, measures.recall_at_5), (0.0, 0.0, 0.0));
    }
}
