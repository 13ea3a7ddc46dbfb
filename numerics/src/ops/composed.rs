//! The operations of [`ops`](super) written with candle's differentiable operations.
//!
//! They run on every device but are slow and take much memory; tests compare the kernels with them. Each function has
//! the shapes and the meaning of the function of the same name in [`ops`](super), and takes weights as plain tensors.

use std::ops::Range;

use candle_core::{D, DType, Result, Tensor};

use super::AttentionMask;

/// `x · weightᵀ + bias`; `x: [..., in]`, `weight: [out, in]`, `bias: [out]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    let rows = x.elem_count() / in_features.max(1);
    let y = x.reshape((rows, in_features))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    let mut shape = x.dims().to_vec();
    *shape.last_mut().ok_or_else(|| candle_core::Error::msg("linear: x has no dimensions"))? = out_features;
    y.reshape(shape)
}

/// Cross-correlation; `x: [batch, in, height, width]`, `weight: [out, in, kh, kw]`, `bias: [out]`.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    let (out_channels, _, kernel_height, kernel_width) = weight.dims4()?;
    let y = if stride == 1 {
        x.conv2d(weight, padding, 1, 1, 1)?
    } else {
        // Trimmed to the pixels under the windows, because candle's backward pass fails on unequal sides.
        let x = trim(&x.pad_with_zeros(2, padding, padding)?, 2, kernel_height, stride)?;
        let x = trim(&x.pad_with_zeros(3, padding, padding)?, 3, kernel_width, stride)?;
        x.conv2d(weight, 0, stride, 1, 1)?
    };
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, out_channels, 1, 1))?),
        None => Ok(y),
    }
}

fn trim(x: &Tensor, dim: usize, kernel: usize, stride: usize) -> Result<Tensor> {
    let size = x.dim(dim)?;
    if size < kernel {
        candle_core::bail!("conv2d: a side of {size} padded pixels is shorter than the kernel of {kernel}");
    }
    x.narrow(dim, 0, (size - kernel) / stride * stride + kernel)
}

/// Normalisation over the last dimension; `weight`, `bias`: `[last]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    standardize(x, eps)?.broadcast_mul(weight)?.broadcast_add(bias)
}

/// Normalisation over groups of channels; `x: [batch, channels, ...]`, `weight`, `bias`: `[channels]`.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let per_group = x.elem_count() / (batch * groups).max(1);
    let y = standardize(&x.reshape((batch, groups, per_group))?, eps)?.reshape(x.shape())?;
    let mut shape = vec![1; x.rank()];
    shape[1] = channels;
    y.broadcast_mul(&weight.reshape(shape.as_slice())?)?.broadcast_add(&bias.reshape(shape)?)
}

fn standardize(x: &Tensor, eps: f64) -> Result<Tensor> {
    let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    centered.broadcast_div(&(variance + eps)?.sqrt()?)
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let exponentials = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

/// `x · σ(x)`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x * sigmoid(x)?
}

/// `x · σ(1.702 x)`.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    x * sigmoid(&(x * 1.702)?)?
}

/// By tanh, because the gradient of `1 / (1 + e⁻ˣ)` is NaN for large negative `x`.
pub(super) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    ((x * 0.5)?.tanh()? + 1.0)? * 0.5
}

/// `x · Φ(x)` with the exact normal distribution function.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    // Not candle's `gelu_erf`: its derivative is accurate to ten digits only.
    (x * 0.5)? * ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?
}

/// `value · gelu(gate)`, where `value` and `gate` are the halves of the last dimension.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let halves = x.chunk(2, D::Minus1)?;
    match halves.as_slice() {
        [value, gate] if value.shape() == gate.shape() => value * gelu(gate)?,
        _ => candle_core::bail!("geglu: expected an even last dimension, found {:?}", x.shape()),
    }
}

/// Multi-head attention; `q: [batch, t, heads * d]`, `k`, `v`: `[batch, s, heads * d]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: AttentionMask) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let split = |x: &Tensor, tokens| x.reshape((batch, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous();
    let (q, k, v) = (split(q, queries)?, split(k, keys)?, split(v, keys)?);
    let scale = 1.0 / ((width / heads) as f64).sqrt();
    let mut scores = (q.matmul(&k.t()?)? * scale)?;
    if mask == AttentionMask::Causal {
        scores = scores.broadcast_add(&causal(0..queries, keys, &scores)?)?;
    }
    softmax(&scores)?.matmul(&v)?.transpose(1, 2)?.reshape((batch, queries, width))
}

/// A mask `[queries, keys]`: 0 where the key is not later than the query, minus infinity elsewhere.
pub(super) fn causal(queries: Range<usize>, keys: usize, like: &Tensor) -> Result<Tensor> {
    let hidden = |row| (0..keys).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 });
    let mask: Vec<f32> = queries.clone().flat_map(hidden).collect();
    Tensor::from_vec(mask, (queries.len(), keys), like.device())?.to_dtype(like.dtype())
}

/// Nearest-neighbour resizing of `x: [batch, channels, height, width]` to `size` (height, width).
pub fn upsample_nearest(x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let rows = nearest(height, size.0, x)?;
    let columns = nearest(width, size.1, x)?;
    x.contiguous()?.index_select(&rows, 2)?.index_select(&columns, 3)
}

fn nearest(from: usize, to: usize, like: &Tensor) -> Result<Tensor> {
    let sources: Vec<u32> = (0..to).map(|i| (i * from / to) as u32).collect();
    Tensor::from_vec(sources, to, like.device())
}

/// `scale · (x · downᵀ) · upᵀ`; `down: [rank, in]`, `up: [out, rank]`.
pub fn low_rank_linear(x: &Tensor, down: &Tensor, up: &Tensor, scale: f64) -> Result<Tensor> {
    linear(&linear(x, down, None)?, up, None)? * scale
}

/// `scale · up ∗ (down ∗ x)`; `down: [rank, in, k, k]`, `up: [out, rank, 1, 1]`.
pub fn low_rank_conv2d(
    x: &Tensor,
    down: &Tensor,
    up: &Tensor,
    scale: f64,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    conv2d(&conv2d(x, down, None, stride, padding)?, up, None, 1, 0)? * scale
}

/// Runs `f` on f32 copies of half-precision CPU tensors and casts the result back.
pub(crate) fn widened(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    match x.dtype() {
        dtype @ (DType::F16 | DType::BF16) if x.device().is_cpu() => f(&x.to_dtype(DType::F32)?)?.to_dtype(dtype),
        _ => f(x),
    }
}
