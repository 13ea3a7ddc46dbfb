//! Scores to probabilities, measured on works that are held out one by one.

use catelier_numerics::noise::{Noise, Stream};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Artist, StyleIndex, rounded};
use crate::vectors::dot;

/// Fewest works with which scores get probabilities.
const FEWEST_WORKS: usize = 20;

/// Most works that are held out; more are drawn from.
const MOST_WORKS: usize = 2000;

/// Steps of Newton's method, which settles after a few.
const STEPS: usize = 50;

/// Keeps the slope finite where works separate perfectly.
const RIDGE: f64 = 1e-3;

/// Bins of the calibration error.
const BINS: usize = 5;

/// How a score becomes a probability: `1 / (1 + exp(-(slope * score + intercept)))`, fitted to held-out works.
///
/// Every work is searched twice: its artist's prototype is made without it (a score that is right), and the artist is left
/// out (the best score that is wrong). A probability of 0.7 means that of works with such a score, 70 % were right, where a
/// searched work is as often by an artist of the index as not.
///
/// **Source** Platt's scaling with his smoothed targets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Factor of the score, above 0.
    pub slope: f64,
    /// Added to it.
    pub intercept: f64,
    /// Number of works that were held out.
    pub works: usize,
    /// Share of them whose own artist was first.
    pub accuracy: f64,
    /// Mean distance of the probabilities from the shares that were right, each half judged by the fit of the other half.
    pub error: f64,
}

impl Calibration {
    /// The probability of a score.
    #[must_use]
    pub fn probability(&self, score: f64) -> f64 {
        logistic(self.slope * score + self.intercept)
    }
}

fn logistic(value: f64) -> f64 {
    1.0 / (1.0 + (-value).exp())
}

/// The scores of one held-out work.
#[derive(Clone, Copy)]
struct Trial {
    right: f64,
    wrong: f64,
    is_first: bool,
}

/// The calibration by the works at hand; `None` for too few of them, and for a model whose scores tell nothing.
pub(super) fn calibrate(index: &StyleIndex, artists: &[Artist]) -> Option<Calibration> {
    let held_out = held_out(artists);
    let trials: Vec<Trial> =
        held_out.par_iter().filter_map(|(artist, work)| trial(index, artists, *artist, *work)).collect();
    if trials.len() < FEWEST_WORKS {
        return None;
    }
    let (slope, intercept) = fit(&samples(&trials))?;
    let accuracy = trials.iter().filter(|trial| trial.is_first).count() as f64 / trials.len() as f64;
    let (slope, intercept, accuracy) = (rounded(slope), rounded(intercept), rounded(accuracy));
    Some(Calibration { slope, intercept, works: trials.len(), accuracy, error: rounded(error(&trials)?) })
}

/// The works of artists with several, by artist and work; a part of them where there are very many.
fn held_out(artists: &[Artist]) -> Vec<(usize, usize)> {
    let several = artists.iter().enumerate().filter(|(_, artist)| artist.works.len() > 1);
    let all: Vec<_> =
        several.flat_map(|(index, artist)| (0..artist.works.len()).map(move |work| (index, work))).collect();
    if all.len() <= MOST_WORKS {
        return all;
    }
    let mut drawn: Vec<_> =
        Noise::new(0).uniforms(Stream("style.calibration"), 0, 0, all.len()).into_iter().zip(all).collect();
    drawn.sort_by(|left, right| left.0.total_cmp(&right.0));
    drawn.into_iter().take(MOST_WORKS).map(|(_, work)| work).collect()
}

/// Searches for a work whose artist's prototype is made without it.
fn trial(index: &StyleIndex, artists: &[Artist], artist: usize, work: usize) -> Option<Trial> {
    let own = &artists[artist];
    let direction = &own.works[work];
    let mut cosines = index.cosines(direction);
    let group = *own.groups.get(work)?;
    let place = index.owners.iter().position(|owner| *owner as usize == artist)? + group;
    // A prototype of this work alone is no prototype without it.
    cosines[place] = own.prototypes[group].without(direction).map_or(-1.0, |rest| dot(&rest, direction));
    let (right, wrong) = index.own_and_foreign(&cosines, artist as u32);
    let beside = index.own_and_foreign_beside(&cosines, artist as u32);
    Some(Trial { right: f64::from(right), wrong: f64::from(wrong), is_first: beside })
}

impl StyleIndex {
    /// Whether the artist's best prototype beats all others where both are there.
    fn own_and_foreign_beside(&self, cosines: &[f32], owner: u32) -> bool {
        let score = |prototype: usize| 2.0 * cosines[prototype] - self.scales[prototype];
        let best = |own: bool| {
            let chosen = (0..cosines.len()).filter(|prototype| (self.owners[*prototype] == owner) == own);
            chosen.map(score).fold(f32::NEG_INFINITY, f32::max)
        };
        best(true) > best(false)
    }
}

/// Scores, and whether they are right.
fn samples(trials: &[Trial]) -> Vec<(f64, bool)> {
    trials.iter().flat_map(|trial| [(trial.right, true), (trial.wrong, false)]).collect()
}

/// Slope and intercept of a logistic regression, by Newton's method; `None` if higher scores are not better ones.
fn fit(samples: &[(f64, bool)]) -> Option<(f64, f64)> {
    let right = samples.iter().filter(|(_, is_right)| *is_right).count() as f64;
    let wrong = samples.len() as f64 - right;
    let target = |is_right: bool| if is_right { (right + 1.0) / (right + 2.0) } else { 1.0 / (wrong + 2.0) };
    let mean = samples.iter().map(|(score, _)| score).sum::<f64>() / samples.len() as f64;
    let (mut slope, mut middle) = (0.0, 0.0);
    for _ in 0..STEPS {
        let mut gradient = [RIDGE * slope, 0.0];
        let mut hessian = [RIDGE, 0.0, 1e-12];
        for (score, is_right) in samples {
            let score = score - mean;
            let probability = logistic(slope * score + middle);
            let (miss, weight) = (probability - target(*is_right), probability * (1.0 - probability));
            gradient = [gradient[0] + miss * score, gradient[1] + miss];
            hessian = [hessian[0] + weight * score * score, hessian[1] + weight * score, hessian[2] + weight];
        }
        let determinant = hessian[0] * hessian[2] - hessian[1] * hessian[1];
        slope -= (hessian[2] * gradient[0] - hessian[1] * gradient[1]) / determinant;
        middle -= (hessian[0] * gradient[1] - hessian[1] * gradient[0]) / determinant;
    }
    (slope.is_finite() && middle.is_finite() && slope > 0.0).then_some((slope, middle - slope * mean))
}

/// The expected calibration error: every second work is judged by the fit of the others.
fn error(trials: &[Trial]) -> Option<f64> {
    let half = |odd: bool| trials.iter().skip(usize::from(odd)).step_by(2).copied().collect::<Vec<_>>();
    let mut judged = Vec::new();
    for odd in [false, true] {
        let (slope, intercept) = fit(&samples(&half(!odd)))?;
        let told =
            samples(&half(odd)).into_iter().map(|(score, is_right)| (logistic(slope * score + intercept), is_right));
        judged.extend(told);
    }
    judged.sort_by(|left, right| left.0.total_cmp(&right.0));
    let of_bin = |bin: &[(f64, bool)]| {
        let told: f64 = bin.iter().map(|(probability, _)| probability).sum();
        let right = bin.iter().filter(|(_, is_right)| *is_right).count() as f64;
        (told - right).abs()
    };
    let distance: f64 = judged.chunks(judged.len().div_ceil(BINS)).map(of_bin).sum();
    Some(distance / judged.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fit_agrees_with_the_probabilities_that_made_the_samples() {
        let uniforms = Noise::new(1).uniforms(Stream("test"), 0, 0, 8000);
        let sample = |pair: &[f64]| {
            let score = 4.0 * pair[0] - 2.0;
            (score, pair[1] < logistic(3.0 * score - 1.0))
        };
        let samples: Vec<_> = uniforms.chunks(2).map(sample).collect();
        let (slope, intercept) = fit(&samples).unwrap();
        assert!((slope - 3.0).abs() < 0.3 && (intercept + 1.0).abs() < 0.2, "{slope} {intercept}");
    }

    #[test]
    fn scores_that_separate_perfectly_give_a_finite_slope() {
        let samples: Vec<_> = (0..40).map(|index| (f64::from(index), index >= 20)).collect();
        let (slope, intercept) = fit(&samples).unwrap();
        let at = |score: f64| logistic(slope * score + intercept);
        assert!(slope.is_finite() && at(0.0) < 0.1 && at(39.0) > 0.9 && (at(19.5) - 0.5).abs() < 0.05);
    }

    #[test]
    fn scores_that_tell_nothing_or_the_contrary_give_no_probability() {
        let contrary: Vec<_> = (0..40).map(|index| (f64::from(index), index < 20)).collect();
        assert_eq!(fit(&contrary), None);
        let constant: Vec<_> = (0..40).map(|index| (1.0, index < 20)).collect();
        assert_eq!(fit(&constant), None);
    }
}
