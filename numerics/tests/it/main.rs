//! Larger checks of the public interface: gradients against finite differences, kernels against candle's operations,
//! bits against the number of threads, golden curves.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

#[cfg(feature = "cuda")]
mod cuda;
mod finite_differences;
mod flow;
mod golden;
mod kernels;
mod material;
mod threads;
