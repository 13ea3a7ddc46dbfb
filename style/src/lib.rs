#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

mod error;
pub mod federated;
mod index;
pub mod losses;
mod model;
mod pooling;
mod prototype;
mod vectors;

pub use error::{Error, Result};
pub use index::{
    AdapterLink, Artist, Calibration, FITS_FROM, Found, Gap, INDEX_FORMAT, INDEX_VERSION, IndexedArtist, NEIGHBOURS,
    Search, StyleIndex,
};
pub use model::{HEAD_FORMAT, HEAD_VERSION, ModelId, Standardisation, StyleHead, StyleModel, project};
pub use pooling::{PooledTower, Pooling, gram, mean_deviation};
pub use prototype::{ADAPTER_ENTRY, Prototype, StyleEntry, prototypes};
