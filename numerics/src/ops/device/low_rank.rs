//! Low-rank updates as one node; the backward pass recomputes the activation of width `rank`.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::super::prepared::{Backward3, with_backward3};
use super::conv::{conv2d, input_gradient, transposed, weight_gradient};
use super::linear;
use catelier_kernels::{Convolution, NeedsGrad};

/// `scale · (x · downᵀ) · upᵀ`; shapes as in [`super::composed::low_rank_linear`], one element type.
pub(in super::super) fn low_rank_linear(x: &Tensor, down: &Tensor, up: &Tensor, scale: f64) -> Result<Tensor> {
    let narrow = linear(&x.detach(), &down.detach(), None)?;
    let y = (linear(&narrow, &up.detach(), None)? * scale)?;
    let backward: Backward3 =
        Arc::new(move |arguments, grad, needs_grad| linear_gradients(arguments, grad, needs_grad, scale));
    with_backward3([x, down, up], &y, backward)
}

fn linear_gradients(
    [x, down, up]: [&Tensor; 3],
    grad: &Tensor,
    needs_grad: NeedsGrad,
    scale: f64,
) -> Result<[Option<Tensor>; 3]> {
    let grad = (grad * scale)?;
    let d_narrow = linear(&grad, &up.t()?, None)?;
    let when = |position: usize, f: &dyn Fn() -> Result<Tensor>| needs_grad[position].then(f).transpose();
    Ok([
        when(0, &|| linear(&d_narrow, &down.t()?, None))?,
        when(1, &|| rows(&d_narrow)?.t()?.matmul(&rows(x)?))?,
        when(2, &|| rows(&grad)?.t()?.matmul(&rows(&linear(x, down, None)?)?))?,
    ])
}

/// `[..., n]` to `[rows, n]`.
fn rows(x: &Tensor) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(1);
    x.reshape((x.elem_count() / width.max(1), width))
}

/// `scale · up ∗ (down ∗ x)`; shapes as in [`super::composed::low_rank_conv2d`], one element type.
pub(in super::super) fn low_rank_conv2d(
    x: &Tensor,
    down: &Tensor,
    up: &Tensor,
    scale: f64,
    sizes: Convolution,
) -> Result<Tensor> {
    let narrow = conv2d(&x.detach(), &down.detach(), None, sizes.stride, sizes.padding)?;
    let y = (conv2d(&narrow, &up.detach(), None, 1, 0)? * scale)?;
    let backward: Backward3 =
        Arc::new(move |arguments, grad, needs_grad| conv2d_gradients(arguments, grad, needs_grad, scale, &sizes));
    with_backward3([x, down, up], &y, backward)
}

fn conv2d_gradients(
    [x, down, up]: [&Tensor; 3],
    grad: &Tensor,
    needs_grad: NeedsGrad,
    scale: f64,
    sizes: &Convolution,
) -> Result<[Option<Tensor>; 3]> {
    let grad = (grad * scale)?;
    let (_, _, height, width) = x.dims4()?;
    let d_narrow = conv2d(&grad, &transposed(up)?, None, 1, 0)?;
    let when = |position: usize, f: &dyn Fn() -> Result<Tensor>| needs_grad[position].then(f).transpose();
    Ok([
        when(0, &|| input_gradient(&d_narrow, &transposed(down)?, sizes, (height, width)))?,
        when(1, &|| weight_gradient(x, &d_narrow, sizes)?.to_dtype(down.dtype()))?,
        when(2, &|| {
            let narrow = conv2d(x, down, None, sizes.stride, sizes.padding)?;
            let (out_channels, in_channels, ..) = up.dims4()?;
            let back = Convolution { in_channels, out_channels, kernel: (1, 1), stride: 1, padding: 0 };
            weight_gradient(&narrow, &grad, &back)?.to_dtype(up.dtype())
        })?,
    ])
}
