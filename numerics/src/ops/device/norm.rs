//! Normalisations with moments in f32; the backward pass recomputes them from the input.

use std::sync::Arc;

use candle_core::{D, Result, Tensor};

use super::super::prepared::with_backward;
use super::{Curve, wide};

/// Values standardised over the last dimension to mean 0 and variance 1.
struct Standardized {
    values: Tensor,
    /// `1 / √(variance + eps)` of each row.
    rate: Tensor,
}

impl Standardized {
    /// Standardises `x`, in f32 or f64, in two passes so that a large mean costs no accuracy.
    fn new(x: &Tensor, eps: f64) -> Result<Self> {
        let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
        let rate = (variance + eps)?.sqrt()?.recip()?;
        Ok(Self { values: centered.broadcast_mul(&rate)?, rate })
    }

    /// Gradient of `x` from the gradient `ds` of the values: `rate · (ds − mean(ds) − x̂ · mean(ds · x̂))`.
    fn gradient(&self, ds: &Tensor) -> Result<Tensor> {
        let slope = (ds * &self.values)?.mean_keepdim(D::Minus1)?;
        let ds = ds.broadcast_sub(&ds.mean_keepdim(D::Minus1)?)?;
        (ds - self.values.broadcast_mul(&slope)?)?.broadcast_mul(&self.rate)
    }
}

/// Normalisation over the last dimension; `weight`, `bias`: `[last]`.
pub(in super::super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (from, dtype, weight) = (x.detach(), x.dtype(), wide(weight)?);
    let standardized = Standardized::new(&wide(&from)?, eps)?;
    let y = standardized.values.broadcast_mul(&weight)?.broadcast_add(&wide(bias)?)?.to_dtype(dtype)?;
    let backward = move |grad: &Tensor| {
        let ds = wide(grad)?.broadcast_mul(&weight)?;
        Standardized::new(&wide(&from)?, eps)?.gradient(&ds)?.to_dtype(dtype)
    };
    with_backward(x, &y, Arc::new(backward))
}

/// Normalisation over groups of channels, then `curve` if given; `x: [batch, channels, ...]`, `weight`, `bias`:
/// `[channels]`.
pub(in super::super) fn group_norm(
    x: &Tensor,
    (weight, bias): (&Tensor, &Tensor),
    groups: usize,
    eps: f64,
    curve: Option<Curve>,
) -> Result<Tensor> {
    let layer = GroupNorm { weight: by_channel(weight, x)?, bias: by_channel(bias, x)?, groups, eps };
    let (from, dtype) = (x.detach(), x.dtype());
    let y = layer.affine(&layer.standardized(&from)?, &from)?;
    let y = curve.map_or(Ok(y.clone()), |curve| (curve.value)(&y))?.to_dtype(dtype)?;
    let backward = move |grad: &Tensor| layer.backward(&from, grad, curve)?.to_dtype(dtype);
    with_backward(x, &y, Arc::new(backward))
}

/// Reshapes `[channels]` to `[1, channels, 1, ...]`, with the rank of `like`.
fn by_channel(values: &Tensor, like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    shape[1] = values.elem_count();
    wide(values)?.reshape(shape)
}

struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    fn standardized(&self, x: &Tensor) -> Result<Standardized> {
        Standardized::new(&wide(&self.rows(x)?)?, self.eps)
    }

    /// Reshapes `[batch, channels, ...]` to `[batch, groups, elements]`.
    fn rows(&self, x: &Tensor) -> Result<Tensor> {
        let batch = x.dim(0)?;
        x.reshape((batch, self.groups, x.elem_count() / (batch * self.groups).max(1)))
    }

    /// The values times weight plus bias by channel, in the shape of `like`.
    fn affine(&self, standardized: &Standardized, like: &Tensor) -> Result<Tensor> {
        standardized.values.reshape(like.shape())?.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)
    }

    fn backward(&self, x: &Tensor, grad: &Tensor, curve: Option<Curve>) -> Result<Tensor> {
        let (standardized, mut grad) = (self.standardized(x)?, wide(grad)?);
        if let Some(curve) = curve {
            grad = (grad * (curve.slope)(&self.affine(&standardized, x)?)?)?;
        }
        let ds = self.rows(&grad.broadcast_mul(&self.weight)?)?;
        standardized.gradient(&ds)?.reshape(x.shape())
    }
}
