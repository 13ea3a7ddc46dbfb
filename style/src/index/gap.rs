//! What sets an artist apart: the discrimination gap.

use catelier_numerics::noise::{Noise, Stream};
use serde::{Deserialize, Serialize};

use super::{Artist, rounded};
use crate::vectors::dot;

/// Resamples behind every interval.
const RESAMPLES: u64 = 400;

/// Share of the resamples beyond each end of an interval.
const TAIL: f64 = 0.025;

/// The discrimination gap of an artist: the mean cosine between its own works, minus the mean cosine of its works to those
/// of the artist where that is largest. At 0 or below, the model cannot tell the two apart.
///
/// **Source** CSD+, arXiv 2605.09030. It follows from counts, concentrations and directions of the prototypes alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// The gap; `None` for an artist with one work.
    pub value: Option<f64>,
    /// Lower end of its 95 % interval by a bootstrap over the works of both artists; `None` where the artist's are not at
    /// hand.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// The most similar artist.
    pub rival: String,
}

impl Gap {
    /// Whether the model tells the artist from the most similar one: the interval, or the gap where there is none, lies
    /// above 0. `None` for an artist with one work.
    #[must_use]
    pub fn is_told_apart(&self) -> Option<bool> {
        self.low.or(self.value).map(|gap| gap > 0.0)
    }
}

/// The sums of all works' directions by artist, and their numbers.
pub(super) struct Means {
    sums: Vec<Vec<f32>>,
    counts: Vec<f64>,
}

impl Means {
    pub(super) fn of(artists: &[Artist], width: usize) -> Self {
        let sum = |artist: &Artist| {
            let mut sum = vec![0f32; width];
            for prototype in &artist.prototypes {
                sum.iter_mut().zip(prototype.sum()).for_each(|(sum, value)| *sum += value);
            }
            sum
        };
        let count = |artist: &Artist| artist.prototypes.iter().map(|own| f64::from(own.count)).sum();
        Self { sums: artists.iter().map(sum).collect(), counts: artists.iter().map(count).collect() }
    }

    /// Mean cosine of the works of two artists.
    fn between(&self, first: usize, second: usize) -> f64 {
        f64::from(dot(&self.sums[first], &self.sums[second])) / (self.counts[first] * self.counts[second])
    }

    /// Mean cosine of two works of one artist; `None` for one work.
    fn within(&self, artist: usize) -> Option<f64> {
        let (sum, count) = (&self.sums[artist], self.counts[artist]);
        (count > 1.0).then(|| (f64::from(dot(sum, sum)) - count) / (count * (count - 1.0)))
    }

    /// The artist whose works are most like those of this one.
    fn rival(&self, artist: usize) -> usize {
        let others = (0..self.sums.len()).filter(|other| *other != artist);
        let alike = others.map(|other| (other, self.between(artist, other)));
        alike.fold((artist, f64::NEG_INFINITY), |most, next| if next.1 > most.1 { next } else { most }).0
    }
}

/// The gap of one artist.
pub(super) fn gap(artists: &[Artist], means: &Means, artist: usize) -> Gap {
    let rival = means.rival(artist);
    let value = means.within(artist).map(|own| rounded(own - means.between(artist, rival)));
    let (own, other) = (&artists[artist].works, &artists[rival].works);
    let interval = (value.is_some() && own.len() > 1).then(|| {
        let rival_mean: Vec<f32> = means.sums[rival].iter().map(|sum| sum / means.counts[rival] as f32).collect();
        interval(own, other, &rival_mean)
    });
    let (low, high) = interval.map_or((None, None), |(low, high)| (Some(low), Some(high)));
    Gap { value, low, high, rival: artists[rival].name.clone() }
}

/// The interval of the gap over resampled works of both artists: which works there are is chance on both sides. Where the
/// rival's works are not at hand, its mean stays.
fn interval(own: &[Vec<f32>], rival: &[Vec<f32>], rival_mean: &[f32]) -> (f64, f64) {
    let mut gaps: Vec<f64> = (0..RESAMPLES).map(|resample| resampled_gap(own, rival, rival_mean, resample)).collect();
    gaps.sort_by(f64::total_cmp);
    let at = |share: f64| rounded(gaps[((gaps.len() - 1) as f64 * share).round() as usize]);
    (at(TAIL), at(1.0 - TAIL))
}

/// The gap of one resample. A work that was drawn twice is no pair with itself.
fn resampled_gap(own: &[Vec<f32>], rival: &[Vec<f32>], rival_mean: &[f32], resample: u64) -> f64 {
    let times = drawn(own.len(), resample, 0);
    let count = own.len() as f64;
    let squares: f64 = times.iter().map(|times| times * times).sum();
    if squares >= count * count {
        // One work alone was drawn, which has no pair.
        return 0.0;
    }
    let sum = weighted_sum(own, &times);
    let within = (f64::from(dot(&sum, &sum)) - squares) / (count * count - squares);
    let other = match rival.len() > 1 {
        true => {
            weighted_sum(rival, &drawn(rival.len(), resample, 1)).iter().map(|sum| sum / rival.len() as f32).collect()
        }
        false => rival_mean.to_vec(),
    };
    within - f64::from(dot(&sum, &other)) / count
}

/// How often each of `count` works is drawn.
fn drawn(count: usize, resample: u64, side: u64) -> Vec<f64> {
    let mut times = vec![0.0; count];
    let places = Noise::new(0).uniforms(Stream("style.gap"), resample, side, count);
    places.into_iter().for_each(|place| times[(place * count as f64) as usize] += 1.0);
    times
}

fn weighted_sum(works: &[Vec<f32>], times: &[f64]) -> Vec<f32> {
    let mut sum = vec![0f32; works[0].len()];
    for (work, times) in works.iter().zip(times).filter(|(_, times)| **times > 0.0) {
        sum.iter_mut().zip(work).for_each(|(sum, value)| *sum += *times as f32 * value);
    }
    sum
}
