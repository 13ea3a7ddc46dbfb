//! Exact rules whose result is larger than a contribution: stacking, and a residual beside the mean of the factors.

use candle_core::Tensor;
use catelier_adapters::{Adapter, LARGEST_RANK, LayerUpdate, LoraFactors, Matrices, sum};
use catelier_numerics::linalg::{LowRankTerm, low_rank_svd};

use super::fedavg::mean_of_tensors;
use super::{Aggregate, lora_of_module};
use crate::check::{RankPolicy, check};
use crate::contribution::{Contribution, shares};
use crate::error::{Error, Result};

/// Stacked factors, whose product is the weighted mean of the updates: `down = [down_1; ...; down_K]` and
/// `up = [p_1 s_1 up_1, ..., p_K s_K up_K]` with scale 1. Exact, and the ranks add up; ranks and alphas may differ.
///
/// Clients merge the global adapter into their base and start again from a fresh one, so the new global adapter is the
/// sum of the last and the stack. A fresh `up` of zero gives `down` no gradient in the first local step of every round.
///
/// **Source** FLoRA, arXiv 2409.05976. The released code puts the weight on one factor; here the scale is in it too.
///
/// # Errors
/// As [`check`] with [`RankPolicy::Mixed`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn flora(contributions: &[Contribution], global: Option<&Adapter>) -> Result<Aggregate> {
    check(contributions, RankPolicy::Mixed)?;
    let shares = shares(contributions);
    refuse_other_kinds("flora", &shares)?;
    let terms: Vec<(&Adapter, f64)> = shares.iter().map(|(c, share)| (&c.adapter, *share)).collect();
    let stack = sum(&terms).map_err(Error::adapters("stacking factors"))?;
    let aggregate = Aggregate::measured(stack, contributions)?;
    let Some(global) = global else { return Ok(aggregate) };
    let whole = sum(&[(global, 1.0), (&aggregate.adapter, 1.0)]).map_err(Error::adapters("adding the stack"))?;
    Ok(Aggregate { adapter: compact(&whole)?, ..aggregate })
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
/// As [`check`] with [`RankPolicy::Uniform`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn fedex(contributions: &[Contribution]) -> Result<WithResidual> {
    check(contributions, RankPolicy::Uniform)?;
    let shares = shares(contributions);
    refuse_other_kinds("fedex", &shares)?;
    let adapter = mean_of_tensors(&shares)?;
    let mut terms: Vec<(&Adapter, f64)> = shares.iter().map(|(c, share)| (&c.adapter, *share)).collect();
    terms.push((&adapter, -1.0));
    let residual = compact(&sum(&terms).map_err(Error::adapters("forming the residual"))?)?;
    Ok(WithResidual { adapter, residual })
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

fn refuse_other_kinds(strategy: &'static str, shares: &[(&Contribution, f64)]) -> Result<()> {
    shares[0].0.adapter.iter().try_for_each(|(module, _)| lora_of_module(strategy, shares, module).map(drop))
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
