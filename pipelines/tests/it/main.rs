//! Larger tests: the same numbers as diffusers, transformers and PEFT; the hub; whole models.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

mod base;
#[cfg(feature = "cuda")]
mod cuda;
mod generation;
mod golden;
mod hub;
mod models;
mod rounding;
mod training;

/// The golden tests of this program run on whatever this CPU does best.
fn choose_kernels() {}
