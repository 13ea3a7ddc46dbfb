//! Averages of factors of different ranks: zero padding, and averaging by rank slice.

use candle_core::{DType, Tensor};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors, Matrices};

use super::Aggregate;
use super::dense::{layout, mean_scale, wide};
use crate::check::RankPolicy;
use crate::contributions::{Contributions, Shares};
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
/// As [`check`](crate::check()) with [`RankPolicy::Mixed`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn hetlora(contributions: &Contributions<'_>) -> Result<Aggregate> {
    contributions.check(RankPolicy::Mixed)?;
    Aggregate::measured(padded("hetlora", contributions, &by_norm(contributions), Absent::Zero)?, contributions)
}

/// Means of the factors, each rank slice averaged over the clients that have it: padding with zeros would shrink the
/// upper slices in every round, until only the smallest rank has energy. **Not exact**, as [`fedavg()`](crate::fedavg),
/// which it equals for clients of one rank and alpha.
///
/// **Source** raFLoRA, arXiv 2602.13486, **reconstructed** from an excerpt: averaging factors by slice is its idea, the
/// treatment of scales is ours (as in [`hetlora()`]).
///
/// # Errors
/// As [`check`](crate::check()) with [`RankPolicy::Mixed`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn raflora(contributions: &Contributions<'_>) -> Result<Aggregate> {
    contributions.check(RankPolicy::Mixed)?;
    Aggregate::measured(padded("raflora", contributions, &contributions.shares(), Absent::LeftOut)?, contributions)
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
fn by_norm(contributions: &Contributions<'_>) -> Shares {
    let norms = contributions.norms();
    let (total, count) = (norms.iter().map(|(_, norm)| norm).sum::<f64>(), norms.len() as f64);
    let share = |norm: f64| if total > 0.0 { norm / total } else { 1.0 / count };
    norms.into_iter().map(|(position, norm)| (position, share(norm))).collect()
}

fn padded(
    strategy: &'static str,
    contributions: &Contributions<'_>,
    shares: &Shares,
    absent: Absent,
) -> Result<Adapter> {
    contributions.refuse_other_kinds(strategy)?;
    let average =
        |module: &str| Ok((module.to_owned(), padded_factors(strategy, contributions, module, shares, absent)?));
    contributions.modules().map(average).collect()
}

fn padded_factors(
    strategy: &'static str,
    contributions: &Contributions<'_>,
    module: &str,
    shares: &Shares,
    absent: Absent,
) -> Result<LoraFactors> {
    let headers = || contributions.headers_of(module, shares);
    let rank = headers().map(|(header, _)| header.rank()).max().unwrap_or(1);
    let scale = mean_scale(headers());
    let owned: Vec<f64> = (0..rank)
        .map(|slice| headers().filter(|(header, _)| header.rank() > slice).map(|(_, share)| share).sum())
        .collect();
    let (mut up_sum, mut down_sum) = (None, None);
    contributions.each_lora(strategy, module, shares, |factors, share| {
        let of_slice = |slice: usize| match absent {
            Absent::Zero => share,
            Absent::LeftOut if owned[slice] > 0.0 => share / owned[slice],
            Absent::LeftOut => 0.0,
        };
        let weights: Vec<f64> = (0..factors.rank()).map(of_slice).collect();
        let (up, down) = weighed(factors, weights, factors.scale() / scale, rank)?;
        add(&mut up_sum, up)?;
        add(&mut down_sum, down)
    })?;
    let matrices = Matrices { up: total(up_sum)?, down: total(down_sum)? };
    let like = layout(contributions, module, shares)?;
    like.with_matrices(&matrices, scale * rank as f64).map_err(Error::adapters("averaging by slice"))
}

fn add(sum: &mut Option<Tensor>, term: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        None => term,
        Some(sum) => (sum + term).map_err(Error::tensor("averaging by slice"))?,
    });
    Ok(())
}

fn total(sum: Option<Tensor>) -> Result<Tensor> {
    sum.ok_or(Error::NoContributions)?.to_dtype(DType::F32).map_err(Error::tensor("averaging by slice"))
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
