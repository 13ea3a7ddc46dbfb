//! `fedavg`: the mean of the tensors.

use catelier_adapters::{Adapter, LayerUpdate};

use super::{Aggregate, of_module};
use crate::check::{RankPolicy, check};
use crate::contribution::{Contribution, shares};
use crate::error::{Error, Result};
use crate::numbers::weighted_sum;

/// Weighted mean of every tensor of the updates separately: of `down` and of `up` (FedIT), and of a DoRA's magnitudes.
///
/// **Not exact**: with shares `p_k` and the shared scale `s`, the mean of the updates is
/// `s * sum p_k up_k down_k`, while `fedavg` gives `s * mean(up) * mean(down)`. The difference is
/// `s * sum p_k (up_k - mean(up)) (down_k - mean(down))`, which vanishes only if all clients share
/// one `down` or one `up`; [`Aggregate::distances`] has its norm. The rule is linear in the
/// factors that clients send, so it can work under secure aggregation.
///
/// For DoRAs the result is further from the mean of the weights, since each client divides by a norm of its own and the
/// result by the norm of the mean. Distances cover the low-rank parts alone; the rest depends on the base's weights.
///
/// **Source** FedAvg, arXiv 1602.05629, on LoRA factors: FedIT, arXiv 2305.05644.
///
/// # Errors
/// As [`check`] with [`RankPolicy::Uniform`]; [`Error::Overflow`] for a mean that is not finite or above the limit.
pub fn fedavg(contributions: &[Contribution]) -> Result<Aggregate> {
    check(contributions, RankPolicy::Uniform)?;
    Aggregate::measured(mean_of_tensors(&shares(contributions))?, contributions)
}

/// Weighted mean of every tensor by itself, for updates of one rank.
pub(super) fn mean_of_tensors(shares: &[(&Contribution, f64)]) -> Result<Adapter> {
    let modules = shares[0].0.adapter.iter();
    modules.map(|(module, _)| Ok((module.to_owned(), mean_update(&of_module(shares, module))?))).collect()
}

fn mean_update(terms: &[(&LayerUpdate, f64)]) -> Result<LayerUpdate> {
    let mean_of =
        |name: &'static str| terms.iter().filter_map(move |(update, share)| Some((update.get(name)?, *share)));
    let (first, _) = terms[0];
    first.try_map(|name, _| weighted_sum(mean_of(name))).map_err(Error::tensor("averaging updates"))
}
