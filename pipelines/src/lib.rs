#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

pub mod data;
pub mod diffusion;
pub mod error;
pub mod generation;
pub mod models;
pub mod training;

pub use error::{Error, Result};
