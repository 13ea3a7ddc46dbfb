//! The loops on the processor: written once for f32 and f64, vectorised, parallel, and the same bits at any number of
//! threads, because work is always cut at fixed places and sums are always taken in the same order.

mod convolution;
mod float;
mod operation;
mod panels;
mod product;
mod spent;
mod transform;
mod vector;

pub(crate) use convolution::{Convolution, OnImages, scratch_bytes};
pub(crate) use float::Float;
use float::{single, single_mut};
pub(crate) use operation::{
    AddedKernel, AddedKernel2, Kernel1, Kernel3, View, Wanted, apply_added, apply_added2, apply1, apply3, lend,
};
pub(crate) use panels::{
    Field, Frame, Job, KEPT_TURNED, Order, Packed, RoundedPairs, RoundedRows, Start, Window, has_bf16_instructions,
    has_wide_vectors, multiply_in_cache, multiply_rounded, pays, sweep, winograd, winograd_bytes,
};
pub(crate) use product::{Matrix, MatrixMut, Threads, Update, multiply};
pub use spent::backward;
pub(crate) use spent::spent;
pub(crate) use vector::{Loop, Simd, largest, map_rows, replace_and_sum, sum, sum_of_products, vectorized};
