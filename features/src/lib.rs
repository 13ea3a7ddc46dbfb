#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

pub mod clip;
pub mod error;
mod extractor;
mod preprocessing;
mod resize;

pub use clip::Clip;
pub use error::{Error, Result};
pub use extractor::{Extractor, Feature, ImageFeatures, TextFeatures};
pub use preprocessing::Preprocessing;
