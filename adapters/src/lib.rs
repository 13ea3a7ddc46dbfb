#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

mod adapter;
mod combine;
mod error;
mod factors;
mod family;
pub mod file;
mod fingerprint;
mod module;
mod set;
mod targets;

pub use adapter::{Adapter, LoraConfig};
pub use combine::{Resized, resized, summed};
pub use error::{Error, MissedPattern, Result, ShapeMismatch};
pub use factors::{LoraFactors, Matrices};
pub use family::{BaseFamily, Prediction};
pub use fingerprint::Fingerprint;
pub use module::{Component, ModuleInfo, ModuleKind};
pub use set::{AdapterDropout, AdapterSet};
pub use targets::Targets;
