//! `product`: the mean of the updates, cut to a rank.

use catelier_adapters::{Adapter, LARGEST_RANK, LoraFactors, Matrices};
use catelier_numerics::linalg::{LowRankTerm, low_rank_svd};

use super::{Aggregate, TargetRank, lora_of_module};
use crate::check::{RankPolicy, check};
use crate::contribution::{Contribution, shares};
use crate::error::{Error, Result};

/// Weighted mean of the scaled products `scale_k up_k down_k`, cut to a rank: the best
/// approximation of the exact mean at that rank, in Frobenius norm.
///
/// The mean is never formed as a matrix; its SVD is computed from the factors. Ranks and alphas may differ between
/// clients. [`Aggregate::distances`] has the norm of the part that is cut off.
///
/// The result has the given `alpha`. If it is `None`, the scale `alpha / rank` is the weighted mean of the clients'
/// scales, so that a learning rate keeps its effect in the next round.
///
/// **Source** FlexLoRA, arXiv 2402.11505; optimal by the Eckart-Young theorem.
///
/// # Errors
/// As [`check`] with [`RankPolicy::Mixed`]; [`Error::Target`] for rank 0 or above [`LARGEST_RANK`], or an alpha that is not
/// finite and above 0; [`Error::Overflow`] for a mean that is not finite or above the limit; [`Error::UnsupportedKind`]
/// for adapters that are no LoRA.
pub fn product(contributions: &[Contribution], rank: TargetRank, alpha: Option<f64>) -> Result<Aggregate> {
    refuse_targets(rank, alpha)?;
    check(contributions, RankPolicy::Mixed)?;
    let adapter = combined("product", &shares(contributions), rank, alpha)?;
    Aggregate::measured(adapter, contributions)
}

/// The sum of the updates with these factors, cut to a rank. `strategy` names the rule in errors.
pub(super) fn combined(
    strategy: &'static str,
    shares: &[(&Contribution, f64)],
    rank: TargetRank,
    alpha: Option<f64>,
) -> Result<Adapter> {
    let mut adapter = Adapter::new();
    for (module, _) in shares[0].0.adapter.iter() {
        let terms = lora_of_module(strategy, shares, module)?;
        adapter.insert(module, mean_update(module, &terms, rank, alpha)?);
    }
    Ok(adapter)
}

pub(super) fn refuse_targets(rank: TargetRank, alpha: Option<f64>) -> Result<()> {
    if let TargetRank::Fixed(rank) = rank
        && !(1..=LARGEST_RANK).contains(&rank)
    {
        return Err(Error::Target { what: "rank", expected: format!("from 1 to {LARGEST_RANK}"), found: rank as f64 });
    }
    match alpha.filter(|alpha| !(alpha.is_finite() && *alpha > 0.0)) {
        Some(found) => Err(Error::Target { what: "alpha", expected: "finite and above 0".into(), found }),
        None => Ok(()),
    }
}

fn mean_update(
    module: &str,
    terms: &[(&LoraFactors, f64)],
    rank: TargetRank,
    alpha: Option<f64>,
) -> Result<LoraFactors> {
    let failed = || Error::adapters("averaging updates");
    let mut products = Vec::new();
    for (factors, share) in terms {
        let Matrices { up, down } = factors.matrices().map_err(failed())?;
        products.push(LowRankTerm { up, down, weight: share * factors.scale() });
    }
    let rank = rank_of_result(terms, &products, rank);
    let cut = low_rank_svd(&products, rank).map_err(Error::numerics(format!("decomposing the mean of `{module}`")))?;
    let alpha = alpha.unwrap_or_else(|| mean_scale(terms) * rank as f64);
    // The scale is split evenly between the factors; any split gives the same product.
    let share = (rank as f64 / alpha).sqrt();
    let scaled = |tensor: candle_core::Tensor| (tensor * share).map_err(Error::tensor("scaling factors"));
    let matrices = Matrices { up: scaled(cut.up)?, down: scaled(cut.down)? };
    terms[0].0.with_matrices(&matrices, alpha).map_err(failed())
}

fn rank_of_result(terms: &[(&LoraFactors, f64)], products: &[LowRankTerm], rank: TargetRank) -> usize {
    let ranks = terms.iter().map(|(factors, _)| factors.rank());
    let size = products[0].up.dims()[0].min(products[0].down.dims()[1]);
    rank.of(ranks.clone().max().unwrap_or(1), ranks.sum::<usize>().min(size))
}

/// Weighted mean of the clients' scales; 1 if the mean is not above 0.
pub(super) fn mean_scale(terms: &[(&LoraFactors, f64)]) -> f64 {
    let scale: f64 = terms.iter().map(|(factors, share)| share * factors.scale()).sum();
    if scale > 0.0 { scale } else { 1.0 }
}
