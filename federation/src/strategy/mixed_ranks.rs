//! Averages of factors of different ranks: zero padding, and averaging by rank slice.

use candle_core::{DType, Tensor};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors, Matrices};

use super::fair::wide;
use super::product::mean_scale;
use super::{Aggregate, lora_of_module};
use crate::check::{RankPolicy, check};
use crate::contribution::{Contribution, shares};
use crate::error::{Error, Result};

/// How a row of `down` that some clients lack is averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// A client without the row counts with zeros.
    Zero,
    /// The row is averaged over the clients that have it.
    LeftOut,
}

/// Means of the factors, padded with zeros to the largest rank, with weights proportional to the norms of the updates;
/// the weights of the contributions are not used. **Not exact**, as [`fedavg()`](crate::fedavg); a client takes the
/// first rows of `down` and columns of `up` that its rank holds.
///
/// Scales may differ: each `up` takes in its client's scale relative to the result's. If all updates are zero, weights
/// are uniform.
///
/// **Source** HetLoRA, arXiv 2401.06432; weights from a third-party review. The pruning of ranks at clients is left
/// out.
///
/// # Errors
/// As [`check`] with [`RankPolicy::Mixed`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn hetlora(contributions: &[Contribution]) -> Result<Aggregate> {
    check(contributions, RankPolicy::Mixed)?;
    let shares = by_norm(contributions)?;
    Aggregate::measured(padded("hetlora", &shares, Absent::Zero)?, contributions)
}

/// Means of the factors, each rank slice averaged over the clients that have it: padding with zeros would shrink the
/// upper slices in every round, until only the smallest rank has energy. **Not exact**, as [`fedavg()`](crate::fedavg),
/// which it equals for clients of one rank and alpha.
///
/// **Source** raFLoRA, arXiv 2602.13486, **reconstructed** from an excerpt: averaging factors by slice is its idea, the
/// treatment of scales is ours (as in [`hetlora()`]).
///
/// # Errors
/// As [`check`] with [`RankPolicy::Mixed`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn raflora(contributions: &[Contribution]) -> Result<Aggregate> {
    check(contributions, RankPolicy::Mixed)?;
    Aggregate::measured(padded("raflora", &shares(contributions), Absent::LeftOut)?, contributions)
}

/// The first `rank` slices of every module at the same scale, which a client of that rank takes home from an average of
/// mixed ranks: the first rows of `down` and columns of `up`. A module of this rank or less stays as it is.
///
/// # Errors
/// [`Error::Target`] for rank 0; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn leading_slices(adapter: &Adapter, rank: usize) -> Result<Adapter> {
    if rank == 0 {
        return Err(Error::Target { what: "rank", expected: "1 or more".into(), found: 0.0 });
    }
    let cut = |(module, update): (&str, &LayerUpdate)| {
        let unlike = || Error::UnsupportedKind { strategy: "hetlora", module: module.into(), kind: update.kind() };
        Ok((module.to_owned(), leading_factors(update.as_lora().ok_or_else(unlike)?, rank)?))
    };
    adapter.iter().map(cut).collect()
}

fn leading_factors(factors: &LoraFactors, rank: usize) -> Result<LoraFactors> {
    if factors.rank() <= rank {
        return Ok(factors.clone());
    }
    let narrow = |tensor: &Tensor, dim: usize| {
        tensor.narrow(dim, 0, rank).and_then(|cut| cut.contiguous()).map_err(Error::tensor("cutting slices"))
    };
    let (down, up) = (narrow(&factors.down, 0)?, narrow(&factors.up, 1)?);
    LoraFactors::new(down, up, factors.scale() * rank as f64).map_err(Error::adapters("cutting slices"))
}

/// Shares proportional to the norms of the updates.
fn by_norm(contributions: &[Contribution]) -> Result<Vec<(&Contribution, f64)>> {
    let mut norms = Vec::new();
    for (contribution, _) in shares(contributions) {
        let norm = contribution.norm()?;
        norms.push((contribution, norm));
    }
    let (total, count) = (norms.iter().map(|(_, norm)| norm).sum::<f64>(), norms.len() as f64);
    let share = |norm: f64| if total > 0.0 { norm / total } else { 1.0 / count };
    Ok(norms.into_iter().map(|(contribution, norm)| (contribution, share(norm))).collect())
}

fn padded(strategy: &'static str, shares: &[(&Contribution, f64)], absent: Absent) -> Result<Adapter> {
    let average = |(module, _): (&str, _)| {
        let terms = lora_of_module(strategy, shares, module)?;
        Ok((module.to_owned(), padded_factors(&terms, absent)?))
    };
    shares[0].0.adapter.iter().map(average).collect()
}

fn padded_factors(terms: &[(&LoraFactors, f64)], absent: Absent) -> Result<LoraFactors> {
    let rank = terms.iter().map(|(factors, _)| factors.rank()).max().unwrap_or(1);
    let scale = mean_scale(terms);
    let owned: Vec<f64> = (0..rank)
        .map(|slice| terms.iter().filter(|(factors, _)| factors.rank() > slice).map(|(_, share)| share).sum())
        .collect();
    let (mut ups, mut downs) = (Vec::new(), Vec::new());
    for (factors, share) in terms {
        let of_slice = |slice: usize| match absent {
            Absent::Zero => *share,
            Absent::LeftOut if owned[slice] > 0.0 => share / owned[slice],
            Absent::LeftOut => 0.0,
        };
        let weights: Vec<f64> = (0..factors.rank()).map(of_slice).collect();
        let (up, down) = weighed(factors, weights, factors.scale() / scale, rank)?;
        ups.push(up);
        downs.push(down);
    }
    let total = |tensors: &[Tensor]| {
        let sum = tensors[1..].iter().try_fold(tensors[0].clone(), |sum, tensor| sum + tensor);
        sum.and_then(|sum| sum.to_dtype(DType::F32)).map_err(Error::tensor("averaging by slice"))
    };
    let matrices = Matrices { up: total(&ups)?, down: total(&downs)? };
    terms[0].0.with_matrices(&matrices, scale * rank as f64).map_err(Error::adapters("averaging by slice"))
}

/// The factors times a weight for each slice, padded with zeros to `rank`; `up` times `scale` too.
fn weighed(factors: &LoraFactors, weights: Vec<f64>, scale: f64, rank: usize) -> Result<(Tensor, Tensor)> {
    let (up, down) = wide(factors)?;
    let (own, missing) = (weights.len(), rank - weights.len());
    let weigh = || -> candle_core::Result<_> {
        let weights = Tensor::from_vec(weights, own, up.device())?;
        let up = (up.broadcast_mul(&weights)? * scale)?;
        let down = down.broadcast_mul(&weights.reshape((own, 1))?)?;
        Ok((up.pad_with_zeros(1, 0, missing)?, down.pad_with_zeros(0, 0, missing)?))
    };
    weigh().map_err(Error::tensor("weighing slices"))
}
