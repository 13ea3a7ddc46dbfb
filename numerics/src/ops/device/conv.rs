//! Convolutions, and the gradient of their input as a second convolution.

use candle_core::{Result, Tensor};

use super::product;
use catelier_kernels::Convolution;
use catelier_kernels::work::count_product;

/// Cross-correlation without a backward pass; shapes as in [`super::composed::conv2d`].
pub(in super::super) fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (out_channels, in_channels, height, width) = weight.dims4()?;
    let y = if (height, width, stride, padding) == (1, 1, 1, 0) {
        pointwise(x, weight)?
    } else {
        let y = x.conv2d(weight, padding, stride, 1, 1)?;
        count_product(y.elem_count() / out_channels.max(1), out_channels, in_channels * height * width);
        y
    };
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, out_channels, 1, 1))?),
        None => Ok(y),
    }
}

/// A 1×1 convolution as a matrix product, which needs no im2col matrix.
fn pointwise(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ((batch, _, height, width), (out_channels, ..)) = (x.dims4()?, weight.dims4()?);
    let weight = weight.flatten_from(1)?.broadcast_left(batch)?;
    product(&weight, &x.flatten_from(2)?.contiguous()?)?.reshape((batch, out_channels, height, width))
}

/// The weight for the input's gradient: `[out, in, kh, kw]` to `[in, out, kh, kw]`, with the taps reversed.
pub(in super::super) fn transposed(weight: &Tensor) -> Result<Tensor> {
    weight.transpose(0, 1)?.contiguous()?.flip(&[2, 3])?.contiguous()
}

/// Gradient of the input, of `size` (height, width), from the gradient of the result.
///
/// The gradient, with `stride − 1` zeros between its elements, is convolved with the [`transposed`] weight. candle's
/// transposed convolution gives the same result but runs one thread for each pixel.
pub(in super::super) fn input_gradient(
    grad: &Tensor,
    transposed: &Tensor,
    sizes: &Convolution,
    size: (usize, usize),
) -> Result<Tensor> {
    let (kernel, padding) = (sizes.kernel, sizes.padding as isize);
    let margins = (kernel.0 as isize - 1 - padding, kernel.1 as isize - 1 - padding);
    let shared = margins.0.min(margins.1).max(0);
    let uncovered = |size: usize, kernel: usize| (size + 2 * sizes.padding - kernel) % sizes.stride;
    let grad = spread(grad, 2, sizes.stride, uncovered(size.0, kernel.0))?;
    let grad = spread(&grad, 3, sizes.stride, uncovered(size.1, kernel.1))?;
    let grad = framed(&framed(&grad, 2, margins.0 - shared)?, 3, margins.1 - shared)?;
    conv2d(&grad, transposed, None, 1, shared as usize)
}

/// Inserts `stride − 1` zeros between the elements of a dimension, and `after < stride` zeros behind the last.
fn spread(x: &Tensor, dim: usize, stride: usize, after: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let (count, mut dims) = (x.dim(dim)?, x.dims().to_vec());
    let spread = x.unsqueeze(dim + 1)?.pad_with_zeros(dim + 1, 0, stride - 1)?;
    dims[dim] = count * stride;
    spread.reshape(dims)?.narrow(dim, 0, (count - 1) * stride + 1 + after)
}

/// Adds `margin` zeros on both sides of a dimension; a negative margin removes elements.
fn framed(x: &Tensor, dim: usize, margin: isize) -> Result<Tensor> {
    let side = margin.unsigned_abs();
    if margin >= 0 { x.pad_with_zeros(dim, side, side) } else { x.narrow(dim, side, x.dim(dim)? - 2 * side) }
}

/// Gradient of the weight, `[out, in, kh, kw]`: for each tap, the product of the gradient with the pixels under that
/// tap.
pub(super) fn weight_gradient(x: &Tensor, grad: &Tensor, sizes: &Convolution) -> Result<Tensor> {
    let Convolution { in_channels, out_channels, kernel, stride, padding } = *sizes;
    let (batch, _, height, width) = grad.dims4()?;
    // Enough zeros behind the image that every tap can be sliced in whole strides.
    let after = padding + stride - 1;
    let x = x.pad_with_zeros(2, padding, after)?.pad_with_zeros(3, padding, after)?;
    let grad = grad.flatten_from(2)?.contiguous()?;
    let tap = |index: usize| {
        let seen = every(&x, 2, index / kernel.1, stride, height)?;
        let seen = every(&seen, 3, index % kernel.1, stride, width)?.reshape((batch, in_channels, height * width))?;
        super::wide(&product(&grad, &seen.t()?)?)?.sum(0)
    };
    let taps = (0..kernel.0 * kernel.1).map(tap).collect::<Result<Vec<_>>>()?;
    Tensor::stack(&taps, 2)?.reshape((out_channels, in_channels, kernel.0, kernel.1))
}

/// Elements `first`, `first + stride`, … of a dimension, `count` of them; the dimension must reach `stride − 1`
/// elements past the last.
fn every(x: &Tensor, dim: usize, first: usize, stride: usize, count: usize) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let x = x.narrow(dim, first, count * stride)?;
    dims.splice(dim..=dim, [count, stride]);
    x.reshape(dims)?.narrow(dim + 1, 0, 1)?.squeeze(dim + 1)
}
