//! A score with its uncertainty.

use catelier_numerics::stats;
use catelier_pages::Estimate;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The smallest similarity in a harmonic mean, so that one opposite image gives a score close to 0 instead of a
/// division by zero.
pub const SMALLEST_SIMILARITY: f64 = 1e-9;

/// A score with the 95 % bootstrap interval of its mean.
///
/// The bootstrap resamples images independently. Images of one prompt with several seeds are correlated, so the true
/// interval can be wider.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The score itself.
    pub mean: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Number of averaged values.
    pub n: usize,
}

impl From<Score> for Estimate {
    fn from(score: Score) -> Self {
        Self { value: score.mean, low: score.low, high: score.high }
    }
}

impl Score {
    /// Whether the intervals of two scores overlap, so that their order may be chance.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }

    /// The arithmetic mean of `values`; their order does not matter.
    pub(crate) fn arithmetic(score: &'static str, values: &[f64], seed: u64) -> Result<Self> {
        require(score, "images", 1, values.len())?;
        let interval = stats::bootstrap_interval(&sorted(values), seed)
            .map_err(|source| Error::Statistics { score, source: Box::new(source) })?;
        Ok(Self { mean: interval.mean, low: interval.low, high: interval.high, n: interval.n })
    }

    /// The harmonic mean of `values` in (0, 1]: the reciprocal of the mean of the reciprocals.
    ///
    /// The interval is the reciprocal of the interval of that mean, with its ends exchanged; percentile intervals
    /// permit this for every monotone function.
    pub(crate) fn harmonic(score: &'static str, values: &[f64], seed: u64) -> Result<Self> {
        let reciprocals: Vec<f64> = values.iter().map(|value| value.max(SMALLEST_SIMILARITY).recip()).collect();
        let of_reciprocals = Self::arithmetic(score, &reciprocals, seed)?;
        Ok(Self {
            mean: of_reciprocals.mean.recip(),
            low: of_reciprocals.high.recip(),
            high: of_reciprocals.low.recip(),
            n: of_reciprocals.n,
        })
    }
}

/// An error unless `found` is at least `expected`.
pub(crate) fn require(score: &'static str, of: &'static str, expected: usize, found: usize) -> Result<()> {
    if found < expected {
        return Err(Error::TooFew { score, of, expected, found });
    }
    Ok(())
}

/// An error unless all values lie in `[low, high]`.
pub(crate) fn require_range(score: &'static str, values: &[f64], (low, high): (f64, f64)) -> Result<()> {
    match values.iter().find(|value| !(low..=high).contains(*value)) {
        None => Ok(()),
        Some(&value) => Err(Error::OutOfRange { score, low, high, value }),
    }
}

/// The arithmetic mean; not a number for an empty list.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}
