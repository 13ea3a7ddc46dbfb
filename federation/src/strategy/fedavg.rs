//! `fedavg`: the mean of the tensors.

use candle_core::{DType, Tensor};
use catelier_adapters::{Adapter, LayerUpdate};

use super::{Aggregate, of_module};
use crate::check::{RankPolicy, check};
use crate::contribution::{Contribution, shares};
use crate::error::{Error, Result};

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
    let shares = shares(contributions);
    let mut adapter = Adapter::new();
    for (module, _) in contributions[0].adapter.iter() {
        adapter.insert(module, mean_update(&of_module(&shares, module))?);
    }
    Aggregate::measured(adapter, contributions)
}

fn mean_update(terms: &[(&LayerUpdate, f64)]) -> Result<LayerUpdate> {
    let mean_of =
        |name: &'static str| terms.iter().filter_map(move |(update, share)| Some((update.get(name)?, *share)));
    let (first, _) = terms[0];
    first.try_map(|name, _| mean(mean_of(name))).map_err(Error::tensor("averaging updates"))
}

/// Weighted sum, computed in f64 and rounded to f32.
fn mean<'t>(terms: impl Iterator<Item = (&'t Tensor, f64)>) -> candle_core::Result<Tensor> {
    let weighted = terms.map(|(tensor, share)| tensor.to_dtype(DType::F64)? * share);
    let weighted = weighted.collect::<candle_core::Result<Vec<_>>>()?;
    let sum = weighted[1..].iter().try_fold(weighted[0].clone(), |sum, term| sum + term)?;
    Ok(sum.to_dtype(DType::F32)?.detach())
}
