//! `product`: the mean of the updates, cut to a rank.

use std::collections::BTreeMap;

use catelier_adapters::{Adapter, LARGEST_RANK, LoraFactors, Matrices};
use catelier_numerics::linalg::{LowRankTerm, low_rank_svd, truncated_svd};

use super::aggregate::distance_from;
use super::dense::{dense_sum, from_cut, has_many_ranks, layout, mean_scale};
use super::{Aggregate, Distance, TargetRank};
use crate::check::RankPolicy;
use crate::contributions::{Contributions, Shares};
use crate::error::{Error, Result};
use crate::numbers::is_positive;

/// Weighted mean of the scaled products `scale_k up_k down_k`, cut to a rank: the best
/// approximation of the exact mean at that rank, in Frobenius norm.
///
/// The SVD of the mean is computed from the stacked factors. Where these have more ranks than the module's smaller side,
/// and more than 256, the mean is formed as a matrix, some contributions at a time. Ranks and alphas may differ between
/// clients. [`Aggregate::distances`] has the norm of the part that is cut off.
///
/// The result has the given `alpha`. If it is `None`, the scale `alpha / rank` is the weighted mean of the clients'
/// scales, so that a learning rate keeps its effect in the next round.
///
/// **Source** FlexLoRA, arXiv 2402.11505; optimal by the Eckart-Young theorem.
///
/// # Errors
/// As [`check`](crate::check()) with [`RankPolicy::Mixed`]; [`Error::Target`] for rank 0 or above [`LARGEST_RANK`], or an alpha that is not
/// finite and above 0; [`Error::Overflow`] for a mean that is not finite or above the limit; [`Error::UnsupportedKind`]
/// for adapters that are no LoRA.
pub fn product(contributions: &Contributions<'_>, rank: TargetRank, alpha: Option<f64>) -> Result<Aggregate> {
    refuse_targets(rank, alpha)?;
    contributions.check(RankPolicy::Mixed)?;
    let combined = combined("product", contributions, &contributions.shares(), rank, alpha)?;
    Aggregate::measured_but(combined.adapter, contributions, combined.distances)
}

/// The sum of updates, cut to a rank.
pub(super) struct Combined {
    pub(super) adapter: Adapter,
    /// By module, the distance from the sum where it was formed as a matrix.
    pub(super) distances: BTreeMap<String, Distance>,
}

/// The sum of the updates with these factors, cut to a rank. `strategy` names the rule in errors.
pub(super) fn combined(
    strategy: &'static str,
    contributions: &Contributions<'_>,
    shares: &Shares,
    rank: TargetRank,
    alpha: Option<f64>,
) -> Result<Combined> {
    contributions.refuse_other_kinds(strategy)?;
    let mut combined = Combined { adapter: Adapter::new(), distances: BTreeMap::new() };
    for module in contributions.modules() {
        let sum =
            SumOfModule { contributions, module, shares, rank: target(contributions, module, shares, rank), alpha };
        if has_many_ranks(contributions, module, shares) {
            let (factors, distance) = sum.of_matrix()?;
            combined.adapter.insert(module, factors);
            combined.distances.insert(module.to_owned(), distance);
        } else {
            combined.adapter.insert(module, sum.of_factors(strategy)?);
        }
    }
    Ok(combined)
}

pub(super) fn refuse_targets(rank: TargetRank, alpha: Option<f64>) -> Result<()> {
    if let TargetRank::Fixed(rank) = rank
        && !(1..=LARGEST_RANK).contains(&rank)
    {
        return Err(Error::Target { what: "rank", expected: format!("from 1 to {LARGEST_RANK}"), found: rank as f64 });
    }
    match alpha.filter(|alpha| !is_positive(*alpha)) {
        Some(found) => Err(Error::Target { what: "alpha", expected: "finite and above 0".into(), found }),
        None => Ok(()),
    }
}

/// The rank of the result at a module.
pub(super) fn target(contributions: &Contributions<'_>, module: &str, shares: &Shares, rank: TargetRank) -> usize {
    let headers = || contributions.headers_of(module, shares).map(|(header, _)| header);
    let size = headers().next().map_or(1, |header| header.sides().0.min(header.sides().1));
    let ranks = || headers().map(crate::source::ModuleHeader::rank);
    rank.of(ranks().max().unwrap_or(1), ranks().sum::<usize>().min(size))
}

/// The sum of one module's updates.
struct SumOfModule<'c, 's> {
    contributions: &'c Contributions<'s>,
    module: &'c str,
    shares: &'c Shares,
    /// Rank of the result.
    rank: usize,
    alpha: Option<f64>,
}

impl SumOfModule<'_, '_> {
    /// From the stacked factors.
    fn of_factors(&self, strategy: &'static str) -> Result<LoraFactors> {
        let terms = self.contributions.loras(strategy, self.module, self.shares)?;
        let mut products = Vec::new();
        for (factors, share) in &terms {
            let Matrices { up, down } = factors.matrices().map_err(Error::adapters("averaging updates"))?;
            products.push(LowRankTerm { up, down, weight: share * factors.scale() });
        }
        let cut = low_rank_svd(&products, self.rank).map_err(Error::numerics(self.attempt()))?;
        from_cut(cut, &terms[0].0, self.share(), self.alpha())
    }

    /// From the sum as a matrix, with the distance of the result from it.
    fn of_matrix(&self) -> Result<(LoraFactors, Distance)> {
        let sum = dense_sum(self.contributions, self.module, self.shares)?;
        let cut = truncated_svd(&sum, self.rank).map_err(Error::numerics(self.attempt()))?;
        let like = layout(self.contributions, self.module, self.shares)?;
        let factors = from_cut(cut, &like, self.share(), self.alpha())?;
        let distance = distance_from(&sum, &factors)?;
        Ok((factors, distance))
    }

    fn attempt(&self) -> String {
        format!("decomposing the mean of `{}`", self.module)
    }

    fn alpha(&self) -> f64 {
        let mean = || mean_scale(self.contributions.headers_of(self.module, self.shares));
        self.alpha.unwrap_or_else(|| mean() * self.rank as f64)
    }

    /// What both factors of the decomposition are multiplied by.
    fn share(&self) -> f64 {
        (self.rank as f64 / self.alpha()).sqrt()
    }
}
