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

/// A weighted sum of tensors of one shape, added one after the other in f64 and rounded to f32 at the end.
#[derive(Debug, Default)]
pub(crate) struct WeightedSum(Option<Tensor>);

impl WeightedSum {
    pub(crate) fn add(&mut self, tensor: &Tensor, weight: f64) -> candle_core::Result<()> {
        let term = (tensor.to_dtype(DType::F64)? * weight)?;
        self.0 = Some(match self.0.take() {
            None => term,
            Some(sum) => (sum + term)?,
        });
        Ok(())
    }

    /// The sum; `None` if nothing was added.
    pub(crate) fn finish(self) -> candle_core::Result<Option<Tensor>> {
        self.0.map(|sum| Ok(sum.to_dtype(DType::F32)?.detach())).transpose()
    }
}

/// Whether a number is finite and above 0.
pub(crate) fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

/// Refuses a setting that is not finite and above 0.
pub(crate) fn positive(what: &'static str, found: f64) -> Result<()> {
    if is_positive(found) { Ok(()) } else { Err(Error::Setting { what, expected: "finite and above 0", found }) }
}

/// The median; the lower of the two in the middle, so that it is an honest norm's if fewer than half are poisoned
/// upwards.
pub(crate) fn lower_median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}
