//! The result of an aggregation, and its distance from the exact mean.

use std::collections::BTreeMap;

use catelier_adapters::{Adapter, sum};
use serde::{Deserialize, Serialize};

use crate::check::overflow;
use crate::contribution::{Contribution, shares};
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
    pub(crate) fn measured(adapter: Adapter, contributions: &[Contribution]) -> Result<Self> {
        if let Some(problem) = overflow(&adapter)? {
            return Err(overflow_error(problem, contributions)?);
        }
        let shares = shares(contributions);
        let distance =
            |(module, _): (&str, _)| Ok((module.to_owned(), distance_of(module, &adapter, &shares, contributions)?));
        let distances = adapter.iter().map(distance).collect::<Result<_>>()?;
        Ok(Self { adapter, distances })
    }
}

/// The distance of one module. Modules are measured one after the other, so that the sums take little memory.
fn distance_of(
    module: &str,
    aggregated: &Adapter,
    shares: &[(&Contribution, f64)],
    contributions: &[Contribution],
) -> Result<Distance> {
    let failed = || Error::adapters("measuring the aggregate");
    let only = |adapter: &Adapter| -> Adapter {
        adapter.get(module).map(|update| (module.to_owned(), update.low_rank().clone())).into_iter().collect()
    };
    let contributed: Vec<(Adapter, f64)> = shares.iter().map(|(c, share)| (only(&c.adapter), *share)).collect();
    let mut terms: Vec<(&Adapter, f64)> = contributed.iter().map(|(adapter, share)| (adapter, *share)).collect();
    let mean = sum(&terms).map_err(failed())?;
    let aggregated = only(aggregated);
    terms.push((&aggregated, -1.0));
    let difference = sum(&terms).map_err(failed())?;
    // A distance means nothing if factors overflow. The difference contains the factors of the mean.
    if let Some(problem) = overflow(&difference)? {
        return Err(overflow_error(problem, contributions)?);
    }
    let norm_of = |adapter: &Adapter| {
        adapter.get(module).map_or(Ok(0.0), |update| update.low_rank().delta_norm()).map_err(failed())
    };
    Ok(Distance { absolute: norm_of(&difference)?, mean_norm: norm_of(&mean)? })
}

/// The error of an overflowing mean. It names the client with the largest update, the one to ask first.
fn overflow_error(problem: Problem, contributions: &[Contribution]) -> Result<Error> {
    let (mut client, mut norm) = ("", 0.0);
    for contribution in contributions {
        let own = contribution.norm()?;
        if own > norm {
            (client, norm) = (&contribution.client, own);
        }
    }
    Ok(Error::Overflow { problem, client: client.to_owned(), norm })
}
