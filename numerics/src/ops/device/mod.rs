//! The operations on GPUs, composed of candle's operations. For half-precision tensors, statistics are in f32. Backward
//! passes are written here where candle's would be slow, keep too many activations or differentiate a frozen weight.
//!
//! No function here asks for the device, so that tests on the CPU can compare them with the CPU kernels.

mod activation;
mod attention;
mod conv;
mod low_rank;
mod norm;
#[cfg(test)]
mod tests;

use candle_core::{DType, Result, Tensor};

pub(super) use activation::{Curve, GELU, QUICK_GELU, SILU, geglu, pointwise, softmax};
pub(super) use attention::attention;
pub(super) use conv::{conv2d, input_gradient, transposed};
pub(super) use low_rank::{low_rank_conv2d, low_rank_linear};
pub(super) use norm::{group_norm, layer_norm};

use super::composed;
use catelier_kernels::work::count_product;

/// `x` in f32 if it is in half precision, else unchanged.
pub(super) fn wide(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

/// `x · weightᵀ + bias`, without a backward pass; shapes as in [`composed::linear`].
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out_features, in_features) = weight.dims2()?;
    count_product(x.elem_count() / in_features.max(1), out_features, in_features);
    composed::linear(x, weight, bias)
}

/// `a · b` for batches of matrices, `[..., m, k]` and `[..., k, n]`.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let [.., inner, columns] = *b.dims() else {
        candle_core::bail!("product: expected matrices, found {:?}", b.dims())
    };
    count_product(a.elem_count() / inner.max(1), columns, inner);
    a.matmul(b)
}
