#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

pub mod content;
pub mod error;
pub mod kps;
pub mod metrics;
pub mod protocol;
pub mod report;
pub mod scaled;
pub mod score;
pub mod scores;
pub mod similarity;

pub use content::Choices;
pub use error::{Error, Result};
pub use metrics::{METRICS, Metric};
pub use protocol::{Baseline, Evaluation, ImagePair, Models, OtherArtist, Reference, TriggerImage};
pub use scaled::Scaled;
pub use score::Score;
pub use scores::{Generation, Scores};
