#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod convolution;
pub mod cpu;
mod float;
#[cfg(test)]
mod normals;
mod operation;
mod panels;
mod product;
mod release;
mod transform;
mod vector;
pub mod work;

pub use convolution::{Convolution, OnImages, scratch_bytes};
pub use float::Float;
use float::{single, single_mut};
pub use operation::{
    AddedKernel, AddedKernel2, Borrowed, Kernel1, Kernel3, NeedsGrad, View, apply_added, apply_added2, apply1, apply3,
    borrow,
};
pub use panels::{
    Direction, Field, Frame, Job, KEPT_TRANSPOSED, Order, Packed, RoundedPairs, RoundedRows, Start, Window,
    has_bf16_instructions, has_wide_vectors, multiply_in_cache, multiply_rounded, pays, sweep, winograd,
    winograd_bytes,
};
pub use product::{Matrix, MatrixMut, Threads, Update, multiply};
pub use release::{backward, release};
pub use vector::{Loop, Simd, largest, map_rows, replace_and_sum, sum, sum_of_products, vectorized};
