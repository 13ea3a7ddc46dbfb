#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

pub mod atomic;
pub mod bounded;
pub mod ema;
mod error;
pub mod finite;
pub mod hex;
pub mod linalg;
pub mod noise;
pub mod ops;
pub mod optim;
pub mod params;
pub mod schedule;
pub mod stats;
pub mod tensor_file;

pub use catelier_kernels::{cpu, work};
pub use error::{Error, Result};
