//! Tensors as f64 values and back: rules compute in f64 and round once.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// The values of a tensor in row-major order.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    let read = || tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1();
    read().map_err(Error::tensor("reading values"))
}

/// An f32 tensor of these values in the shape and on the device of `like`.
pub(crate) fn shaped(values: Vec<f64>, like: &Tensor) -> Result<Tensor> {
    let write = || Tensor::from_vec(values, like.dims(), like.device())?.to_dtype(DType::F32);
    write().map_err(Error::tensor("writing values"))
}

/// The tensor in f32, detached.
pub(crate) fn tensor(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(DType::F32).map_err(Error::tensor("reading the memory"))?.detach())
}

/// Weighted sum of tensors of one shape, computed in f64 and rounded to f32.
pub(crate) fn weighted_sum<'t>(terms: impl Iterator<Item = (&'t Tensor, f64)>) -> candle_core::Result<Tensor> {
    let weighted = terms.map(|(tensor, share)| tensor.to_dtype(DType::F64)? * share);
    let weighted = weighted.collect::<candle_core::Result<Vec<_>>>()?;
    let sum = weighted[1..].iter().try_fold(weighted[0].clone(), |sum, term| sum + term)?;
    Ok(sum.to_dtype(DType::F32)?.detach())
}
