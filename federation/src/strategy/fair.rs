//! LoRA-FAIR: the mean of `down`, and the `up` beside it that comes nearest to the mean of the updates.

use candle_core::{DType, Tensor};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors, Matrices};
use catelier_numerics::linalg::ridge_solution;

use super::Aggregate;
use super::dense::wide;
use super::fedavg::mean_of_tensors;
use crate::check::RankPolicy;
use crate::contributions::{Contributions, Shares};
use crate::error::{Error, Result};
use crate::numbers::positive;

/// The mean of every `down`, and a corrected `up`: with `E = sum p_k up_k down_k - mean(up) mean(down)`, the correction
/// is `E down^T (down down^T + ridge I)^-1` for the mean `down`. The rank stays, and the distance from the mean of the
/// updates is never above that of [`fedavg()`](crate::fedavg).
///
/// `ridge`, above 0, is in units of the mean squared norm of a row of the mean `down`. Towards 0 the result is the
/// projection of the mean of the updates to the rows of the mean `down`; for a large one it is `fedavg`.
///
/// **Source** LoRA-FAIR, arXiv 2411.14961, **reconstructed**: the paper's distance is a cosine and its weight was not
/// available; the Frobenius norm used here has this closed form.
///
/// # Errors
/// As [`check`](crate::check()) with [`RankPolicy::Uniform`]; [`Error::Setting`] for the ridge; [`Error::UnsupportedKind`] for adapters
/// that are no LoRA.
pub fn fair(contributions: &Contributions<'_>, ridge: f64) -> Result<Aggregate> {
    refuse_ridge(ridge)?;
    contributions.check(RankPolicy::Uniform)?;
    let (mean, shares) = (mean_of_tensors(contributions)?, contributions.shares());
    let corrected = |(module, update): (&str, &LayerUpdate)| {
        Ok((module.to_owned(), corrected(module, update.low_rank(), contributions, &shares, ridge)?))
    };
    Aggregate::measured(mean.iter().map(corrected).collect::<Result<Adapter>>()?, contributions)
}

pub(super) fn refuse_ridge(ridge: f64) -> Result<()> {
    positive("ridge of `fair`", ridge)
}

fn corrected(
    module: &str,
    mean: &LoraFactors,
    contributions: &Contributions<'_>,
    shares: &Shares,
    ridge: f64,
) -> Result<LoraFactors> {
    let (up, down) = wide(mean)?;
    let failed = || Error::tensor("correcting `up`");
    let transposed = down.t().map_err(failed())?;
    let gram = down.matmul(&transposed).map_err(failed())?;
    // (mean of up_k down_k - up down) down^T, from the factors alone.
    let mut right = (up.matmul(&gram).map_err(failed())? * -1.0).map_err(failed())?;
    contributions.each_lora("fair", module, shares, |factors, share| {
        let (up, down) = wide(factors)?;
        let product = down.matmul(&transposed).and_then(|inner| up.matmul(&inner)? * share).map_err(failed())?;
        right = (&right + product).map_err(failed())?;
        Ok(())
    })?;
    let size = mean_diagonal(&gram).map_err(failed())?;
    let correction = match size > 0.0 {
        true => ridge_solution(&gram, ridge * size, &right)
            .map_err(Error::numerics(format!("correcting `up` of `{module}`")))?,
        false => right.zeros_like().map_err(failed())?,
    };
    let narrow = |tensor: &Tensor| tensor.to_dtype(DType::F32).map_err(failed());
    let matrices = Matrices { up: narrow(&(up + correction).map_err(failed())?)?, down: narrow(&down)? };
    mean.with_matrices(&matrices, mean.alpha).map_err(Error::adapters("correcting `up`"))
}

fn mean_diagonal(gram: &Tensor) -> candle_core::Result<f64> {
    let values = gram.to_vec2::<f64>()?;
    Ok(values.iter().enumerate().map(|(i, row)| row[i]).sum::<f64>() / values.len().max(1) as f64)
}
