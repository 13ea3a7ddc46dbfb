//! Strategies: rules that aggregate many adapters into one.
//!
//! Each strategy is a pure function of the contributions, in a file of its own. A new strategy needs such a file and a
//! variant of [`Strategy`]; rounds need no change.

mod fedavg;
mod product;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use catelier_adapters::{Adapter, LayerUpdate, sum};
use serde::{Deserialize, Serialize};

pub use fedavg::fedavg;
pub use product::product;

use crate::check::overflow;
use crate::contribution::{Contribution, shares};
use crate::error::{Error, Problem, Result};

/// The rule that aggregates the contributions of a round.
///
/// In text: `fedavg`, `product` (the largest rank of the contributions), `product:8` (rank 8), `product:exact` (the sum
/// of ranks, which loses nothing). The names in the papers are accepted too: `fedit` is `fedavg`, and `flexlora` is
/// `product`.
///
/// ```
/// # use catelier_federation::{Strategy, TargetRank};
/// let strategy: Strategy = "product:8".parse().unwrap();
/// assert_eq!(strategy, Strategy::Product { rank: TargetRank::Fixed(8), alpha: None });
/// assert_eq!("flexlora:8".parse::<Strategy>().unwrap(), strategy);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Weighted means of `down` and of `up` separately: see [`fedavg()`].
    #[serde(alias = "fedit")]
    Fedavg,
    /// Weighted mean of the updates, cut to a rank: see [`product()`].
    #[serde(alias = "flexlora")]
    Product {
        /// Rank of the result.
        rank: TargetRank,
        /// Alpha of the result; `None` for the alpha that makes the result's scale the mean of the clients' scales.
        alpha: Option<f64>,
    },
}

/// The rank of the result of `product`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetRank {
    /// The largest rank among the contributions, module by module.
    #[default]
    Largest,
    /// This rank, 1 or more.
    Fixed(usize),
    /// The sum of ranks, at most the size of the module: nothing is cut off.
    Exact,
}

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
}

impl Aggregate {
    /// Measures the distance of `adapter` from the exact weighted mean of the contributions, in the low-rank parts
    /// alone: the rest of a DoRA depends on the base's weights.
    fn measured(adapter: Adapter, contributions: &[Contribution]) -> Result<Self> {
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
        let own = contribution.adapter.low_rank().delta_norm().map_err(Error::adapters("measuring contributions"))?;
        if own > norm {
            (client, norm) = (&contribution.client, own);
        }
    }
    Ok(Error::Overflow { problem, client: client.to_owned(), norm })
}

impl Strategy {
    /// `product` at the largest rank of the contributions.
    pub fn product() -> Self {
        Self::Product { rank: TargetRank::default(), alpha: None }
    }

    /// Description of the strategy in one sentence.
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

    /// Refuses a rank or alpha that no result can have.
    ///
    /// # Errors
    /// [`Error::Target`].
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Fedavg => Ok(()),
            Self::Product { rank, alpha } => product::refuse_targets(*rank, *alpha),
        }
    }

    /// Checks the contributions and aggregates them.
    ///
    /// # Errors
    /// [`Error::NoContributions`]; [`Error::Contributions`] names every contribution that fails the
    /// check; [`Error::Target`] for an impossible rank or alpha; [`Error::Overflow`] for a mean that
    /// is not finite or above the limit.
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
        let (name, rank) = text.split_once(':').map_or((text, None), |(name, rank)| (name, Some(rank)));
        let rank = match (name, rank) {
            ("fedavg" | "fedit", None) => return Ok(Self::Fedavg),
            ("product" | "flexlora", None) => TargetRank::Largest,
            ("product" | "flexlora", Some("exact")) => TargetRank::Exact,
            ("product" | "flexlora", Some(rank)) => match rank.parse() {
                Ok(rank) if rank > 0 => TargetRank::Fixed(rank),
                _ => return Err(unknown()),
            },
            _ => return Err(unknown()),
        };
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

/// The update of one module in every contribution, with the contribution's share.
fn of_module<'c>(shares: &[(&'c Contribution, f64)], module: &str) -> Vec<(&'c LayerUpdate, f64)> {
    shares.iter().filter_map(|(contribution, share)| Some((contribution.adapter.get(module)?, *share))).collect()
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
    fn names_of_papers_are_read_too() {
        for (paper, name) in [("fedit", "fedavg"), ("flexlora", "product"), ("flexlora:exact", "product:exact")] {
            assert_eq!(paper.parse::<Strategy>().unwrap(), name.parse().unwrap());
        }
        let json = r#"{"flexlora": {"rank": {"fixed": 4}, "alpha": null}}"#;
        let strategy: Strategy = serde_json::from_str(json).unwrap();
        assert_eq!(strategy.to_string(), "product:4");
        assert!(serde_json::to_string(&strategy).unwrap().starts_with(r#"{"product""#));
    }

    #[test]
    fn other_names_are_refused_with_the_choices() {
        for text in ["", "average", "product:", "product:0", "product:-1", "fedavg:2", "fedit:exact", "flexlora:0"] {
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
