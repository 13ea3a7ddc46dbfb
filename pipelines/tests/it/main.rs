//! Larger tests: comparison with diffusers, transformers and PEFT; the hub; whole models.
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
mod knowledge;
mod models;
mod rounding;
mod training;

/// Golden tests of this binary run with the fastest kernels of the CPU.
fn choose_kernels() {}
