//! Updates as matrices: sums that are formed in blocks, and factors that are made from them.

use candle_core::{DType, Tensor};
use catelier_adapters::{LayerUpdate, LoraFactors, Matrices};
use catelier_numerics::linalg::{Truncated, truncated_svd};
use rayon::prelude::*;

use crate::contributions::{Contributions, Shares};
use crate::error::{Error, Result};
use crate::source::ModuleHeader;

/// Summed ranks up to this are stacked, whatever the size of the module.
pub(super) const FEW_RANKS: usize = 256;

/// Summed rank of the contributions whose factors are multiplied together.
const TOGETHER: usize = 512;

/// Whether the factors of a module have so many ranks that their sum is smaller as a matrix: above the smaller side.
pub(super) fn has_many_ranks(contributions: &Contributions<'_>, module: &str, shares: &Shares) -> bool {
    let (mut ranks, mut side) = (0, usize::MAX);
    for (header, _) in contributions.headers_of(module, shares) {
        let (out, inputs) = header.sides();
        (ranks, side) = (ranks + header.rank(), out.min(inputs));
    }
    ranks > side.max(FEW_RANKS)
}

/// The factors as f64 matrices, `up` [out, r] and `down` [r, in].
pub(super) fn wide(factors: &LoraFactors) -> Result<(Tensor, Tensor)> {
    let Matrices { up, down } = factors.matrices().map_err(Error::adapters("reading factors"))?;
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).map_err(Error::tensor("reading factors"));
    Ok((wide(&up)?, wide(&down)?))
}

/// The update as an f64 matrix `[out, in * kernel * kernel]`.
pub(super) fn dense(factors: &LoraFactors) -> Result<Tensor> {
    let (up, down) = wide(factors)?;
    up.matmul(&down).and_then(|product| product * factors.scale()).map_err(forming())
}

fn forming() -> impl FnOnce(candle_core::Error) -> Error {
    Error::tensor("forming updates")
}

/// The sum of the low-rank updates of a module, each times its share, as an f64 matrix `[out, in * kernel * kernel]`. Only
/// some contributions are in memory at a time.
pub(super) fn dense_sum(contributions: &Contributions<'_>, module: &str, shares: &Shares) -> Result<Tensor> {
    let mut sum = DenseSum::default();
    contributions.each_update(module, shares, |update, share| sum.add(update.low_rank(), share))?;
    sum.finish()?.ok_or(Error::NoContributions)
}

/// A sum of products of factors, of which some wait to be multiplied together.
#[derive(Default)]
struct DenseSum {
    ups: Vec<Tensor>,
    downs: Vec<Tensor>,
    ranks: usize,
    sum: Option<Tensor>,
}

impl DenseSum {
    fn add(&mut self, factors: &LoraFactors, share: f64) -> Result<()> {
        let (up, down) = wide(factors)?;
        self.ups.push((up * (factors.scale() * share)).map_err(forming())?);
        self.downs.push(down);
        self.ranks += factors.rank();
        if self.ranks >= TOGETHER { self.multiply() } else { Ok(()) }
    }

    fn multiply(&mut self) -> Result<()> {
        if self.ups.is_empty() {
            return Ok(());
        }
        let (ups, downs) = (std::mem::take(&mut self.ups), std::mem::take(&mut self.downs));
        let product = Tensor::cat(&ups, 1).and_then(|up| in_strips(&up, &Tensor::cat(&downs, 0)?)).map_err(forming())?;
        self.ranks = 0;
        self.sum = Some(match self.sum.take() {
            None => product,
            Some(sum) => (sum + product).map_err(forming())?,
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Option<Tensor>> {
        self.multiply()?;
        Ok(self.sum)
    }
}

/// Rows that are multiplied by one thread, whatever the number of threads.
const STRIP: usize = 128;

/// `left * right`, by all threads.
fn in_strips(left: &Tensor, right: &Tensor) -> candle_core::Result<Tensor> {
    let rows = left.dims()[0];
    let strips: Vec<usize> = (0..rows).step_by(STRIP).collect();
    let product = |top: &usize| left.narrow(0, *top, STRIP.min(rows - top))?.contiguous()?.matmul(right);
    let strips: Vec<candle_core::Result<Tensor>> = strips.par_iter().map(product).collect();
    Tensor::cat(&strips.into_iter().collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// Frobenius norm of a matrix.
pub(super) fn norm(matrix: &Tensor) -> Result<f64> {
    let square = matrix.sqr().and_then(|square| square.sum_all()?.to_scalar::<f64>());
    Ok(square.map_err(Error::tensor("measuring updates"))?.sqrt())
}

/// Factors of a dense update cut to a rank, in the layout of `like`; `scale` is `alpha / rank`.
pub(super) fn from_dense(
    module: &str,
    dense: &Tensor,
    like: &LoraFactors,
    rank: usize,
    scale: f64,
) -> Result<LoraFactors> {
    let cut = truncated_svd(dense, rank).map_err(Error::numerics(format!("decomposing the update of `{module}`")))?;
    from_cut(cut, like, scale.sqrt().recip(), scale * rank as f64)
}

/// The factors of a decomposition in the layout of `like`, both times `share`: the scale is split evenly between them. Any
/// split gives the same product.
pub(super) fn from_cut(cut: Truncated, like: &LoraFactors, share: f64, alpha: f64) -> Result<LoraFactors> {
    let scaled = |tensor: Tensor| {
        (tensor * share).and_then(|tensor| tensor.to_dtype(DType::F32)).map_err(Error::tensor("scaling factors"))
    };
    let matrices = Matrices { up: scaled(cut.up)?, down: scaled(cut.down)? };
    like.with_matrices(&matrices, alpha).map_err(Error::adapters("cutting an update"))
}

/// A dense update as factors of the rank of its smaller side and scale 1, in the layout of `like`: one of them is the
/// identity, so that nothing is decomposed.
pub(super) fn undecomposed(dense: &Tensor, like: &LoraFactors) -> Result<LoraFactors> {
    let failed = || Error::tensor("writing factors");
    let (out, inputs) = dense.dims2().map_err(failed())?;
    let side = out.min(inputs);
    let identity = Tensor::eye(side, DType::F32, dense.device()).map_err(failed())?;
    let dense = dense.to_dtype(DType::F32).map_err(failed())?;
    let (up, down) = if out <= inputs { (identity, dense) } else { (dense, identity) };
    like.with_matrices(&Matrices { up, down }, side as f64).map_err(Error::adapters("writing factors"))
}

/// The low-rank part of a module's update in the first contribution of `shares`, whose layout the others have.
pub(super) fn layout(contributions: &Contributions<'_>, module: &str, shares: &Shares) -> Result<LoraFactors> {
    let mut first: Option<LayerUpdate> = None;
    contributions.each_update(module, &shares[..1].to_vec(), |update, _| {
        first = Some(update);
        Ok(())
    })?;
    first.map(|update| update.low_rank().clone()).ok_or(Error::NoContributions)
}

/// Weighted mean of the scales; 1 if the mean is not above 0.
pub(super) fn mean_scale<'h>(headers: impl Iterator<Item = (&'h ModuleHeader, f64)>) -> f64 {
    let scale: f64 = headers.map(|(header, share)| share * header.scale()).sum();
    if scale > 0.0 { scale } else { 1.0 }
}
