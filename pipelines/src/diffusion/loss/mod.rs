//! Training objectives: pure functions of predictions, one value per sample.
//!
//! Each function returns `[batch]`, so that the caller can weight samples, name a sample without a finite value, and
//! take the mean. The whole objective of a run is
//!
//! ```text
//! L = mean( w(t) denoising ) + cat_weight mean( w(t) cat ) + prior_weight mean( prior )
//! ```
//!
//! with the same `w(t)` ([`min_snr_weight`], or 1) on the first two terms.

mod cat;
mod denoising;
mod prior;

pub use cat::cat;
pub use denoising::{denoising, min_snr_weight};
pub use prior::prior_preservation;

use candle_core::{DType, Result, Tensor};

/// Mean squared difference of each sample, `[batch, …]` twice to `[batch]`, in f32 or wider: predictions of a model in
/// half precision are in half precision, but targets are f32.
fn squared_difference(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let dtype = if [left, right].iter().any(|tensor| tensor.dtype() == DType::F64) { DType::F64 } else { DType::F32 };
    (left.to_dtype(dtype)? - right.to_dtype(dtype)?)?.sqr()?.flatten_from(1)?.mean(1)
}
