#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

pub mod base;
pub mod data;
pub mod diffusion;
pub mod error;
pub mod files;
pub mod generate;
pub mod hub;
pub mod loss;
pub mod model;
pub mod picture_file;
pub mod plan;
pub mod sampler;
pub mod sheet;
pub mod train;

pub use error::{Error, Result};
