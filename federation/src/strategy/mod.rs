//! Strategies: how many adapters become one.
//!
//! Each strategy is a pure function of the contributions in a file of its own. A new one is such
//! a file and a variant of [`Strategy`]; rounds need no change.

mod fedavg;
mod product;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use catelier_adapters::{Adapter, LayerUpdate, sum};
use serde::{Deserialize, Serialize};

pub use fedavg::fedavg;
pub use product::product;

use crate::contribution::{Contribution, shares};
use crate::error::{Error, Result};

/// How the contributions of a round become one adapter.
///
/// In text: `fedavg`, `product` (the largest rank of the contributions), `product:8` (rank 8),
/// `product:exact` (the sum of ranks, which loses nothing).
///
/// ```
/// # use catelier_federation::{Strategy, TargetRank};
/// let strategy: Strategy = "product:8".parse().unwrap();
/// assert_eq!(strategy, Strategy::Product { rank: TargetRank::Fixed(8), alpha: None });
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Weighted mean of `down` and of `up`, each by itself: see [`fedavg()`].
    Fedavg,
    /// Weighted mean of the updates themselves, cut to a rank: see [`product()`].
    Product {
        /// Rank of the result.
        rank: TargetRank,
        /// Alpha of the result; by default such that its scale is the mean of the clients' scales.
        alpha: Option<f64>,
    },
}

/// The rank that a mean of updates is cut to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetRank {
    /// The largest rank that a contribution has at this module.
    #[default]
    Largest,
    /// This rank, 1 or more.
    Fixed(usize),
    /// The sum of ranks, at most the size of the module: nothing is cut off.
    Exact,
}

/// One adapter made from many, and how far it is from their exact mean.
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
    /// The distance as a part of the exact mean's norm; 0 where both are 0.
    pub fn relative(&self) -> f64 {
        if self.absolute == 0.0 { 0.0 } else { self.absolute / self.mean_norm }
    }
}

impl Aggregate {
    /// The share of the exact mean's energy (its squared norm) that the aggregate misses, by
    /// module: what `product` cut off.
    pub fn discarded(&self) -> BTreeMap<&str, f64> {
        self.distances.iter().map(|(module, distance)| (module.as_str(), distance.relative().powi(2))).collect()
    }

    /// The distance of the whole update, all modules together.
    pub fn distance(&self) -> Distance {
        let norm = |of: fn(&Distance) -> f64| self.distances.values().map(|d| of(d).powi(2)).sum::<f64>().sqrt();
        Distance { absolute: norm(|d| d.absolute), mean_norm: norm(|d| d.mean_norm) }
    }
}

impl Strategy {
    /// `product` at the largest rank of the contributions.
    pub fn product() -> Self {
        Self::Product { rank: TargetRank::default(), alpha: None }
    }

    /// What the strategy does, in one sentence for people.
    pub fn description(&self) -> &'static str {
        match self {
            Self::Fedavg => {
                "mean of the factors, each by itself; cheap, but not the mean of the updates unless all clients share one `down`"
            }
            Self::Product { .. } => {
                "mean of the updates themselves, cut to a rank by singular values; exact when the rank suffices, and ranks may differ"
            }
        }
    }

    /// Checks the contributions and aggregates them.
    ///
    /// **Errors** [`Error::NoContributions`], [`Error::Contributions`] with all offenders,
    /// [`Error::Target`] for an impossible rank or alpha.
    pub fn aggregate(&self, contributions: &[Contribution]) -> Result<Aggregate> {
        match self {
            Self::Fedavg => fedavg(contributions),
            Self::Product { rank, alpha } => product(contributions, *rank, *alpha),
        }
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::UnknownStrategy { name: text.to_owned() };
        let rank = match text.split_once(':') {
            None if text == "fedavg" => return Ok(Self::Fedavg),
            None if text == "product" => TargetRank::Largest,
            Some(("product", "exact")) => TargetRank::Exact,
            Some(("product", rank)) => TargetRank::Fixed(rank.parse().map_err(|_| unknown())?),
            _ => return Err(unknown()),
        };
        if rank == TargetRank::Fixed(0) {
            return Err(unknown());
        }
        Ok(Self::Product { rank, alpha: None })
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fedavg => f.write_str("fedavg"),
            Self::Product { rank: TargetRank::Largest, .. } => f.write_str("product"),
            Self::Product { rank: TargetRank::Fixed(rank), .. } => write!(f, "product:{rank}"),
            Self::Product { rank: TargetRank::Exact, .. } => f.write_str("product:exact"),
        }
    }
}

/// The module's update of every contribution, with the contribution's share.
fn of_module<'c>(shares: &[(&'c Contribution, f64)], module: &str) -> Vec<(&'c LayerUpdate, f64)> {
    shares.iter().filter_map(|(contribution, share)| Some((contribution.adapter.get(module)?, *share))).collect()
}

/// By module, how far an adapter is from the exact weighted mean of the contributions' updates, in their low-rank parts.
fn distances(adapter: &Adapter, contributions: &[Contribution]) -> Result<BTreeMap<String, Distance>> {
    let failed = || Error::adapters("measuring the aggregate");
    let aggregated = adapter.low_rank();
    let contributed: Vec<(Adapter, f64)> =
        shares(contributions).iter().map(|(c, share)| (c.adapter.low_rank(), *share)).collect();
    let mut terms: Vec<(&Adapter, f64)> = contributed.iter().map(|(adapter, share)| (adapter, *share)).collect();
    let mean = sum(&terms).map_err(failed())?;
    terms.push((&aggregated, -1.0));
    let difference = sum(&terms).map_err(failed())?;
    let norm_of = |adapter: &Adapter, module: &str| {
        adapter.get(module).map_or(Ok(0.0), |update| update.low_rank().delta_norm()).map_err(failed())
    };
    adapter
        .iter()
        .map(|(module, _)| {
            let absolute = norm_of(&difference, module)?;
            Ok((module.to_owned(), Distance { absolute, mean_norm: norm_of(&mean, module)? }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_are_written_as_they_are_read() {
        for text in ["fedavg", "product", "product:8", "product:exact"] {
            assert_eq!(text.parse::<Strategy>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_names_are_refused_with_the_choices() {
        for text in ["", "average", "product:", "product:0", "product:-1", "fedavg:2"] {
            let error = text.parse::<Strategy>().unwrap_err();
            assert!(error.to_string().contains("`fedavg` or `product`"), "{error}");
        }
    }

    #[test]
    fn a_distance_from_nothing_is_nothing() {
        assert!(Distance::default().relative().abs() < 1e-12);
        assert!((Distance { absolute: 1.0, mean_norm: 4.0 }.relative() - 0.25).abs() < 1e-12);
    }
}
