//! The result of an aggregation, and its distance from the exact mean.

use std::collections::BTreeMap;

use catelier_adapters::{Adapter, LoraFactors, sum};
use serde::{Deserialize, Serialize};

use super::dense::{dense, dense_sum, has_many_ranks, norm};
use crate::check::{LARGEST, overflow};
use crate::contributions::{Contributions, Shares};
use crate::error::{Error, Problem, Result};

/// The adapter made from all contributions, and its distance from their exact mean.
#[derive(Debug, Clone)]
pub struct Aggregate {
    /// The aggregated adapter.
    pub adapter: Adapter,
    /// By module, the distance of its update from the weighted mean of the updates.
    pub distances: BTreeMap<String, Distance>,
}

/// Distance of an update from the exact weighted mean, in Frobenius norm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// Norm of the difference.
    pub absolute: f64,
    /// Norm of the exact mean.
    pub mean_norm: f64,
}

impl Distance {
    /// The distance in units of the exact mean's norm; 0 where both are 0.
    pub fn relative(&self) -> f64 {
        if self.absolute == 0.0 { 0.0 } else { self.absolute / self.mean_norm }
    }
}

impl Aggregate {
    /// By module, the share of the exact mean's squared norm that the aggregate misses; for
    /// `product`, the part that was cut off.
    pub fn discarded(&self) -> BTreeMap<&str, f64> {
        self.distances.iter().map(|(module, distance)| (module.as_str(), distance.relative().powi(2))).collect()
    }

    /// The distance of the whole update, all modules together.
    pub fn distance(&self) -> Distance {
        let norm = |of: fn(&Distance) -> f64| self.distances.values().map(|d| of(d).powi(2)).sum::<f64>().sqrt();
        Distance { absolute: norm(|d| d.absolute), mean_norm: norm(|d| d.mean_norm) }
    }

    /// Measures the distance of `adapter` from the exact weighted mean of the contributions, in the low-rank parts
    /// alone: the rest of a DoRA depends on the base's weights.
    pub(crate) fn measured(adapter: Adapter, contributions: &Contributions<'_>) -> Result<Self> {
        Self::measured_but(adapter, contributions, BTreeMap::new())
    }

    /// As [`measured`](Self::measured), for all modules but those whose distances are `known`.
    pub(crate) fn measured_but(
        adapter: Adapter,
        contributions: &Contributions<'_>,
        known: BTreeMap<String, Distance>,
    ) -> Result<Self> {
        if let Some(problem) = overflow(&adapter)? {
            return Err(overflow_error(problem, contributions));
        }
        let shares = contributions.shares();
        let mut distances = known;
        for (module, update) in adapter.iter() {
            let distance = match distances.remove(module) {
                Some(known) => known,
                None => distance_of(module, update.low_rank(), contributions, &shares)?,
            };
            refuse_large(module, distance, contributions)?;
            distances.insert(module.to_owned(), distance);
        }
        Ok(Self { adapter, distances })
    }
}

/// The distance of one module. Modules are measured one after the other, so that the sums take little memory.
fn distance_of(
    module: &str,
    aggregated: &LoraFactors,
    contributions: &Contributions<'_>,
    shares: &Shares,
) -> Result<Distance> {
    if has_many_ranks(contributions, module, shares) {
        return distance_from(&dense_sum(contributions, module, shares)?, aggregated);
    }
    let failed = || Error::adapters("measuring the aggregate");
    let only = |factors: &LoraFactors| Adapter::from_iter([(module.to_owned(), factors.clone())]);
    let mut contributed: Vec<(Adapter, f64)> = Vec::new();
    contributions.each_update(module, shares, |update, share| {
        contributed.push((only(update.low_rank()), share));
        Ok(())
    })?;
    let mut terms: Vec<(&Adapter, f64)> = contributed.iter().map(|(adapter, share)| (adapter, *share)).collect();
    let mean = sum(&terms).map_err(failed())?;
    let aggregated = only(aggregated);
    terms.push((&aggregated, -1.0));
    let difference = sum(&terms).map_err(failed())?;
    // A distance means nothing if factors overflow. The difference contains the factors of the mean.
    if let Some(problem) = overflow(&difference)? {
        return Err(overflow_error(problem, contributions));
    }
    let norm_of = |adapter: &Adapter| {
        adapter.get(module).map_or(Ok(0.0), |update| update.low_rank().delta_norm()).map_err(failed())
    };
    Ok(Distance { absolute: norm_of(&difference)?, mean_norm: norm_of(&mean)? })
}

/// The distance of factors from a mean that was formed as a matrix.
pub(super) fn distance_from(mean: &candle_core::Tensor, aggregated: &LoraFactors) -> Result<Distance> {
    let difference = (mean - dense(aggregated)?).map_err(Error::tensor("measuring the aggregate"))?;
    Ok(Distance { absolute: norm(&difference)?, mean_norm: norm(mean)? })
}

/// Refuses norms that no contribution may have.
fn refuse_large(module: &str, distance: Distance, contributions: &Contributions<'_>) -> Result<()> {
    let norm = distance.absolute.max(distance.mean_norm);
    // The comparison is false for NaN.
    if norm <= LARGEST {
        return Ok(());
    }
    Err(overflow_error(Problem::TooLarge { norm, module: module.to_owned() }, contributions))
}

/// The error of an overflowing mean. It names the client with the largest update, the one to ask first.
fn overflow_error(problem: Problem, contributions: &Contributions<'_>) -> Error {
    let (mut client, mut norm) = ("", 0.0);
    for (header, _, own) in contributions.iter() {
        if own > norm {
            (client, norm) = (&header.client, own);
        }
    }
    Error::Overflow { problem, client: client.to_owned(), norm }
}
