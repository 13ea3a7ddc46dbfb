//! `fedavg`: the mean of the tensors.

use std::collections::BTreeMap;

use catelier_adapters::{Adapter, LayerUpdate};

use super::Aggregate;
use crate::check::RankPolicy;
use crate::contributions::Contributions;
use crate::error::{Error, Result};
use crate::numbers::WeightedSum;

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
/// As [`check`](crate::check()) with [`RankPolicy::Uniform`]; [`Error::Overflow`] for a mean that is not finite or above the limit.
pub fn fedavg(contributions: &Contributions<'_>) -> Result<Aggregate> {
    contributions.check(RankPolicy::Uniform)?;
    Aggregate::measured(mean_of_tensors(contributions)?, contributions)
}

/// Weighted mean of every tensor by itself, for updates of one rank.
pub(super) fn mean_of_tensors(contributions: &Contributions<'_>) -> Result<Adapter> {
    let shares = contributions.shares();
    let mean = |module: &str| {
        let mut mean = MeanUpdate::default();
        contributions.each_update(module, &shares, |update, share| mean.add(&update, share))?;
        Ok((module.to_owned(), mean.finish()?))
    };
    contributions.modules().map(mean).collect()
}

/// The weighted mean of the tensors of updates that are added one after the other.
#[derive(Default)]
pub(super) struct MeanUpdate {
    /// The first update, which has the kind and the alpha of all.
    first: Option<LayerUpdate>,
    sums: BTreeMap<&'static str, WeightedSum>,
}

impl MeanUpdate {
    pub(super) fn add(&mut self, update: &LayerUpdate, share: f64) -> Result<()> {
        for (name, tensor) in update.tensors() {
            self.sums.entry(name).or_default().add(tensor, share).map_err(averaging())?;
        }
        self.first.get_or_insert_with(|| update.clone());
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<LayerUpdate> {
        let first = self.first.ok_or(Error::NoContributions)?;
        first.try_map(|name, tensor| {
            let sum = self.sums.remove(name).unwrap_or_default().finish().map_err(averaging())?;
            Ok(sum.unwrap_or_else(|| tensor.clone()))
        })
    }
}

fn averaging() -> impl FnOnce(candle_core::Error) -> Error {
    Error::tensor("averaging updates")
}
