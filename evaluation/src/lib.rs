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
pub mod features;
pub mod kps;
pub mod protocol;
pub mod report;
pub mod score;
pub mod scores;
pub mod similarity;

pub use clip::Clip;
pub use error::{Error, Result};
pub use features::{Extractor, Feature, FeatureExtractor};
pub use protocol::{Evaluation, Generation, PicturePair, TriggerPicture};
pub use score::Score;
pub use scores::Scores;
