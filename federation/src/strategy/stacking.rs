//! Exact rules whose result is larger than a contribution: stacking, and a residual beside the mean of the factors.

use candle_core::Tensor;
use catelier_adapters::{Adapter, LARGEST_RANK, LayerUpdate, LoraFactors, Matrices, sum};
use catelier_numerics::linalg::{LowRankTerm, low_rank_svd};

use super::Aggregate;
use super::dense::{FEW_RANKS, dense, dense_sum, has_many_ranks, layout, undecomposed};
use super::fedavg::mean_of_tensors;
use crate::check::RankPolicy;
use crate::contributions::{Contributions, Shares};
use crate::error::{Error, Result};

/// Stacked factors, whose product is the weighted mean of the updates: `down = [down_1; ...; down_K]` and
/// `up = [p_1 s_1 up_1, ..., p_K s_K up_K]` with scale 1. Exact, and the ranks add up; ranks and alphas may differ. Where
/// there would be more ranks than the module's smaller side, and more than 256, one factor is the mean as a matrix and the
/// other the identity.
///
/// Clients merge the global adapter into their base and start again from a fresh one, so the new global adapter is the
/// sum of the last and the stack. A fresh `up` of zero gives `down` no gradient in the first local step of every round.
///
/// **Source** FLoRA, arXiv 2409.05976. The released code puts the weight on one factor; here the scale is in it too.
///
/// # Errors
/// As [`check`](crate::check()) with [`RankPolicy::Mixed`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn flora(contributions: &Contributions<'_>, global: Option<&Adapter>) -> Result<Aggregate> {
    contributions.check(RankPolicy::Mixed)?;
    contributions.refuse_other_kinds("flora")?;
    let shares = contributions.shares();
    let stacked = |module: &str| Ok((module.to_owned(), stacked(contributions, module, &shares)?));
    let aggregate = Aggregate::measured(contributions.modules().map(stacked).collect::<Result<_>>()?, contributions)?;
    let Some(global) = global else { return Ok(aggregate) };
    let whole = sum(&[(global, 1.0), (&aggregate.adapter, 1.0)]).map_err(Error::adapters("adding the stack"))?;
    Ok(Aggregate { adapter: compact(&whole)?, ..aggregate })
}

fn stacked(contributions: &Contributions<'_>, module: &str, shares: &Shares) -> Result<LoraFactors> {
    if has_many_ranks(contributions, module, shares) {
        return undecomposed(&dense_sum(contributions, module, shares)?, &layout(contributions, module, shares)?);
    }
    let terms = contributions.loras("flora", module, shares)?;
    sum_of(module, terms.iter().map(|(factors, share)| (factors, *share)), "stacking factors")
}

/// The stacked factors of terms.
fn sum_of<'t>(module: &str, terms: impl Iterator<Item = (&'t LoraFactors, f64)>, what: &str) -> Result<LoraFactors> {
    let only = |factors: &LoraFactors| Adapter::from_iter([(module.to_owned(), factors.clone())]);
    let terms: Vec<(Adapter, f64)> = terms.map(|(factors, share)| (only(factors), share)).collect();
    let borrowed: Vec<(&Adapter, f64)> = terms.iter().map(|(adapter, share)| (adapter, *share)).collect();
    let sum = sum(&borrowed).map_err(Error::adapters(what))?;
    sum.get(module).map(|update| update.low_rank().clone()).ok_or(Error::NoContributions)
}

/// Means of the factors, and what they miss of the mean of the updates.
#[derive(Debug, Clone)]
pub struct WithResidual {
    /// Weighted means of `down` and `up`, each by itself, as [`fedavg()`](crate::fedavg) gives them.
    pub adapter: Adapter,
    /// The residual `sum p_k s up_k down_k - s mean(up) mean(down)` as a LoRA of scale 1. Clients add it to their base.
    pub residual: Adapter,
}

/// Means of the factors and their residual: exact together, while clients go on from factors of their own rank.
///
/// The residual has at most the rank `(K + 1) r`, and at most the smaller side of the module; directions that are
/// within rounding of zero are left out. Residuals of several rounds add up in the server's memory.
///
/// **Source** FedEx-LoRA, arXiv 2410.09432.
///
/// # Errors
/// As [`check`](crate::check()) with [`RankPolicy::Uniform`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn fedex(contributions: &Contributions<'_>) -> Result<WithResidual> {
    contributions.check(RankPolicy::Uniform)?;
    contributions.refuse_other_kinds("fedex")?;
    let (adapter, shares) = (mean_of_tensors(contributions)?, contributions.shares());
    let residual = |(module, mean): (&str, &LayerUpdate)| {
        Ok((module.to_owned(), residual(contributions, module, &shares, mean.low_rank())?))
    };
    let residual = adapter.iter().map(residual).collect::<Result<Adapter>>()?;
    Ok(WithResidual { adapter, residual })
}

fn residual(contributions: &Contributions<'_>, module: &str, shares: &Shares, mean: &LoraFactors) -> Result<LoraFactors> {
    if has_many_ranks(contributions, module, shares) {
        let missed = dense_sum(contributions, module, shares)? - dense(mean)?;
        return undecomposed(&missed.map_err(Error::tensor("forming the residual"))?, mean);
    }
    let terms = contributions.loras("fedex", module, shares)?;
    let terms = terms.iter().map(|(factors, share)| (factors, *share)).chain([(mean, -1.0)]);
    compact_factors(module, &sum_of(module, terms, "forming the residual")?)
}

impl WithResidual {
    /// One adapter with the whole update: the factors and the residual, stacked.
    ///
    /// # Errors
    /// [`Error::Adapters`] if the two do not fit each other.
    pub fn whole(&self) -> Result<Adapter> {
        sum(&[(&self.adapter, 1.0), (&self.residual, 1.0)]).map_err(Error::adapters("adding the residual"))
    }
}

/// Singular values below this part of the largest are rounding: f32 has 24 bits.
const ROUNDING: f64 = 1e-7;

/// The same update in as few ranks as it needs, 1 or more.
pub(super) fn compact(adapter: &Adapter) -> Result<Adapter> {
    let needed =
        |(module, update): (&str, &LayerUpdate)| Ok((module.to_owned(), compact_factors(module, update.low_rank())?));
    adapter.iter().map(needed).collect()
}

fn compact_factors(module: &str, factors: &LoraFactors) -> Result<LoraFactors> {
    let failed = || Error::adapters("compacting factors");
    let Matrices { up, down } = factors.matrices().map_err(failed())?;
    let side = up.dims()[0].min(down.dims()[1]);
    if factors.rank() > side.max(FEW_RANKS) {
        return undecomposed(&dense(factors)?, factors);
    }
    let most = factors.rank().min(up.dims()[0]).min(down.dims()[1]).clamp(1, LARGEST_RANK);
    let terms = [LowRankTerm { up, down, weight: factors.scale() }];
    let all = low_rank_svd(&terms, most).map_err(Error::numerics(format!("decomposing the sum of `{module}`")))?;
    let largest = all.singular_values.first().copied().unwrap_or(0.0);
    let rank = all.singular_values.iter().filter(|value| **value > ROUNDING * largest).count().clamp(1, most);
    let cut = |tensor: &Tensor, dim: usize| {
        tensor.narrow(dim, 0, rank).and_then(|cut| cut.contiguous()).map_err(Error::tensor("cutting factors"))
    };
    let matrices = Matrices { up: cut(&all.up, 1)?, down: cut(&all.down, 0)? };
    factors.with_matrices(&matrices, rank as f64).map_err(failed())
}
