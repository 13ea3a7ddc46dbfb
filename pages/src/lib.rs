#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod chart;
pub mod embedded_image;
mod error;
mod estimate;
pub mod number;
pub mod page;

pub use embedded_image::EmbeddedImage;
pub use error::{Error, Result};
pub use estimate::Estimate;
