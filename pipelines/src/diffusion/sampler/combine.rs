//! Weighted sums of latents.

use candle_core::Tensor;

use crate::error::Result;

/// The sum of weight × tensor over `terms`, in the type of the first tensor.
pub(super) fn weighted_sum(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut terms = terms.iter().filter(|(weight, _)| *weight != 0.0);
    let first = terms.next();
    let (weight, tensor) = first.expect("every caller gives its own latents a weight that is not 0");
    let mut sum = (*tensor * *weight)?;
    for (weight, tensor) in terms {
        sum = (sum + (*tensor * *weight)?)?;
    }
    Ok(sum)
}
