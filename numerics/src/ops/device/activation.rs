//! Element-wise functions and softmax, computed in f32 for half precision.

use std::f64::consts::{FRAC_1_SQRT_2, TAU};
use std::sync::Arc;

use candle_core::{D, Result, Tensor};

use super::super::composed::{self, sigmoid};
use super::super::prepared::with_backward;
use super::wide;

/// An element-wise function and its derivative, for tensors in f32 or f64.
#[derive(Clone, Copy)]
pub(in super::super) struct Curve {
    pub(super) value: fn(&Tensor) -> Result<Tensor>,
    pub(super) slope: fn(&Tensor) -> Result<Tensor>,
}

pub(in super::super) const SILU: Curve = Curve { value: composed::silu, slope: |x| steep_slope(x, 1.0) };
pub(in super::super) const QUICK_GELU: Curve = Curve { value: composed::quick_gelu, slope: |x| steep_slope(x, 1.702) };
pub(in super::super) const GELU: Curve = Curve { value: composed::gelu, slope: gelu_slope };

/// The derivative of `x · σ(rate · x)`.
fn steep_slope(x: &Tensor, rate: f64) -> Result<Tensor> {
    let steep = (x * rate)?;
    let s = sigmoid(&steep)?;
    let rest = (1.0 - &s)?;
    s * ((steep * rest)? + 1.0)?
}

/// `Φ(x) + x · φ(x)`.
fn gelu_slope(x: &Tensor) -> Result<Tensor> {
    let cdf = (((x * FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    let density = ((x.sqr()? * -0.5)?.exp()? * (1.0 / TAU.sqrt()))?;
    cdf + (x * density)?
}

/// `curve` of every element; the backward pass recomputes from `x`.
pub(in super::super) fn pointwise(x: &Tensor, curve: Curve) -> Result<Tensor> {
    let (from, dtype) = (x.detach(), x.dtype());
    let y = (curve.value)(&wide(&from)?)?.to_dtype(dtype)?;
    let backward = move |grad: &Tensor| ((curve.slope)(&wide(&from)?)? * wide(grad)?)?.to_dtype(dtype);
    with_backward(x, &y, Arc::new(backward))
}

/// `value · gelu(gate)`, where `value` and `gate` are the halves of the last dimension.
pub(in super::super) fn geglu(x: &Tensor) -> Result<Tensor> {
    let (from, dtype) = (x.detach(), x.dtype());
    let (value, gate) = halves(&from)?;
    let y = (value * (GELU.value)(&gate)?)?.to_dtype(dtype)?;
    let backward = move |grad: &Tensor| {
        let ((value, gate), grad) = (halves(&from)?, wide(grad)?);
        let d_value = (&grad * (GELU.value)(&gate)?)?;
        let d_gate = ((grad * value)? * (GELU.slope)(&gate)?)?;
        Tensor::cat(&[d_value, d_gate], D::Minus1)?.to_dtype(dtype)
    };
    with_backward(x, &y, Arc::new(backward))
}

fn halves(x: &Tensor) -> Result<(Tensor, Tensor)> {
    match x.dims().last() {
        Some(width) if width.is_multiple_of(2) => {
            let half = |first| wide(&x.narrow(D::Minus1, first, width / 2)?)?.contiguous();
            Ok((half(0)?, half(width / 2)?))
        }
        _ => candle_core::bail!("geglu: expected an even last dimension, found shape {:?}", x.dims()),
    }
}

/// Softmax over the last dimension; the backward pass reads only the result.
pub(in super::super) fn softmax(x: &Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let y = composed::softmax(&wide(&x.detach())?)?.to_dtype(dtype)?;
    let result = y.clone();
    let backward = move |grad: &Tensor| {
        let (y, grad) = (wide(&result)?, wide(grad)?);
        let dot = (&y * &grad)?.sum_keepdim(D::Minus1)?;
        (y * grad.broadcast_sub(&dot)?)?.to_dtype(dtype)
    };
    with_backward(x, &y, Arc::new(backward))
}
