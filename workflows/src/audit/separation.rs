//! How well a number tells members, on which an adapter was trained, from others, on which it was not.

use catelier_evaluation::Score;
use catelier_numerics::Error as NumericsError;
use catelier_numerics::noise::{Noise, Stream};
use serde::Serialize;

use crate::error::{Context, Result};

const RESAMPLES: u64 = 1000;
const MEMBERS: Stream = Stream("audit/bootstrap-members");
const OTHERS: Stream = Stream("audit/bootstrap-others");

/// Half of what a 95 % interval leaves out.
const TAIL: f64 = 0.025;

/// How well a number tells members from others, with 95 % bootstrap intervals over both.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Separation {
    /// Chance that a member has a larger number than another, ties counted half: 0.5 if the number tells nothing.
    pub auc: Score,
    /// Share of the members above the 99th percentile of the others: the true positives at 1 % false ones.
    pub above_99: Score,
    /// Share of the members above the 90th percentile of the others: the true positives at 10 % false ones.
    pub above_90: Score,
    /// Upper end of the exact one-sided 95 % interval of `above_99` (Clopper and Pearson). With few members it is far above a
    /// share of 0, of which the bootstrap's interval has no width.
    pub above_99_at_most: f64,
}

impl Separation {
    /// From the numbers of the members and of the others, at least one each; a function of these and `seed`.
    ///
    /// # Errors
    /// [`Error::Failed`](crate::Error::Failed) for an empty list, and for a number that is not finite.
    pub(crate) fn of(members: &[f64], others: &[f64], seed: u64) -> Result<Self> {
        refuse_unusable(members, others).failed("cannot tell members from others")?;
        let samples = Samples { members, others, seed };
        let above_99 = samples.score(|members, others| share_above(members, quantile(others, 0.99)));
        let found = (above_99.mean * members.len() as f64).round() as usize;
        Ok(Self {
            auc: samples.score(auc),
            above_99,
            above_90: samples.score(|members, others| share_above(members, quantile(others, 0.9))),
            above_99_at_most: binomial_upper(found, members.len()),
        })
    }
}

fn refuse_unusable(members: &[f64], others: &[f64]) -> std::result::Result<(), NumericsError> {
    if members.is_empty() || others.is_empty() {
        return Err(NumericsError::NoValues { what: "separation" });
    }
    match members.iter().chain(others).find(|number| !number.is_finite()) {
        Some(&found) => {
            Err(NumericsError::Number { what: "value of a separation", expected: "a finite number", found })
        }
        None => Ok(()),
    }
}

/// Two samples whose statistics are resampled.
#[derive(Clone, Copy)]
struct Samples<'a> {
    members: &'a [f64],
    others: &'a [f64],
    seed: u64,
}

impl Samples<'_> {
    /// A statistic of both samples, sorted, with its percentile interval.
    fn score(self, statistic: impl Fn(&[f64], &[f64]) -> f64) -> Score {
        let Self { members, others, seed } = self;
        let noise = Noise::new(seed);
        let resampled =
            |index| statistic(&drawn(members, &noise, MEMBERS, index), &drawn(others, &noise, OTHERS, index));
        let values = sorted((0..RESAMPLES).map(resampled).collect());
        Score {
            mean: statistic(&sorted(members.to_vec()), &sorted(others.to_vec())),
            low: quantile(&values, TAIL),
            high: quantile(&values, 1.0 - TAIL),
            n: members.len(),
        }
    }
}

/// A resample with replacement, sorted.
fn drawn(values: &[f64], noise: &Noise, stream: Stream, index: u64) -> Vec<f64> {
    let places = noise.uniforms(stream, 0, index, values.len());
    sorted(places.into_iter().map(|place| values[(place * values.len() as f64) as usize]).collect())
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Area under the ROC curve, from sorted samples: Mann and Whitney's statistic, ties counted half.
fn auc(members: &[f64], others: &[f64]) -> f64 {
    let wins = |member: &f64| {
        let (below, up_to) =
            (others.partition_point(|other| other < member), others.partition_point(|other| other <= member));
        (below + up_to) as f64 / 2.0
    };
    members.iter().map(wins).sum::<f64>() / (members.len() * others.len()) as f64
}

fn share_above(values: &[f64], threshold: f64) -> f64 {
    values.iter().filter(|value| **value > threshold).count() as f64 / values.len() as f64
}

/// The quantile at `fraction`, by linear interpolation between order statistics.
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let position = fraction * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    below + (above - below) * position.fract()
}

/// The largest share under which `found` or fewer of `n` still have a chance of 5 %.
fn binomial_upper(found: usize, n: usize) -> f64 {
    if found >= n {
        return 1.0;
    }
    let (mut low, mut high) = (found as f64 / n as f64, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if binomial_at_most(found, n, middle) > 0.05 { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

/// Chance of `found` or fewer successes in `n` draws of this share, which is below 1.
fn binomial_at_most(found: usize, n: usize, share: f64) -> f64 {
    let mut term = (1.0 - share).powi(n as i32);
    let mut sum = term;
    for k in 1..=found {
        term *= (n - k + 1) as f64 / k as f64 * share / (1.0 - share);
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(stream: &'static str, count: usize) -> Vec<f64> {
        Noise::new(5).uniforms(Stream(stream), 0, 0, count)
    }

    #[test]
    fn members_above_all_others_are_told_apart_wholly() {
        let told = Separation::of(&[2.0, 3.0, 4.0], &numbers("others", 200), 1).unwrap();
        for score in [told.auc, told.above_99, told.above_90] {
            assert_eq!((score.low, score.mean, score.high, score.n), (1.0, 1.0, 1.0, 3));
        }
        assert_eq!(told.above_99_at_most, 1.0);
    }

    #[test]
    fn numbers_that_tell_nothing_have_half_the_area_within_the_interval() {
        let told = Separation::of(&numbers("members", 40), &numbers("others", 200), 1).unwrap();
        assert!(told.auc.low < 0.5 && 0.5 < told.auc.high, "{told:?}");
        assert!(told.auc.high - told.auc.low < 0.25 && told.above_99.low == 0.0, "{told:?}");
    }

    #[test]
    fn the_area_counts_ties_half() {
        // Of six pairs, 3 above, 1 even, 2 below.
        assert_eq!(auc(&[1.0, 3.0], &[0.0, 2.0, 3.0]), (1.0 + 2.5) / 6.0);
    }

    #[test]
    fn an_exact_upper_end_is_that_of_the_tables() {
        // 1 - 0.05^(1/10), and Clopper and Pearson's one-sided end for 1 of 10.
        assert!((binomial_upper(0, 10) - 0.258_865_6).abs() < 1e-6);
        assert!((binomial_upper(1, 10) - 0.394_163_3).abs() < 1e-6);
        assert_eq!(binomial_upper(10, 10), 1.0);
    }

    #[test]
    fn the_same_seed_gives_the_same_interval_and_unusable_numbers_are_refused() {
        let (members, others) = (numbers("members", 10), numbers("others", 50));
        let of = |seed| Separation::of(&members, &others, seed).unwrap();
        assert_eq!(of(3), of(3));
        assert_ne!(of(3).auc, of(4).auc);
        assert!(Separation::of(&[], &others, 1).is_err() && Separation::of(&members, &[f64::NAN], 1).is_err());
    }
}
