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
mod dora;
mod error;
mod factors;
mod family;
pub mod file;
mod fingerprint;
mod kind;
mod layer;
mod module;
mod set;
mod targets;
mod update;

pub use adapter::{Adapter, LoraConfig};
pub use combine::{Resized, resize, sum};
pub use dora::DoraFactors;
pub use error::{Error, MissedPattern, Result, ShapeMismatch, SurplusRank};
pub use factors::{LARGEST_RANK, LARGEST_SURPLUS_RANK, LoraFactors, Matrices};
pub use family::{BaseFamily, Prediction};
pub use fingerprint::Fingerprint;
pub use kind::{AdapterKind, UpdateKind};
pub use module::{Component, ModuleInfo, ModuleKind};
pub use set::{AdapterDropout, AdapterSet};
pub use targets::Targets;
pub use update::LayerUpdate;
