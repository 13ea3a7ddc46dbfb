//! What a feature extractor is: pictures and texts in, directions out.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// The feature of one picture or text: a direction of unit length.
pub type Feature = Vec<f32>;

/// Which extractor made the features; numbers of different extractors do not compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extractor {
    /// The model's name, for instance the name of its folder.
    pub name: String,
    /// SHA-256 of its weights file, in hexadecimal.
    pub sha256: String,
}

/// Turns pictures and texts into features of one common space.
pub trait FeatureExtractor {
    /// Name and hash, to be recorded beside every score.
    fn extractor(&self) -> &Extractor;

    /// One feature for each picture, in order.
    ///
    /// # Errors
    /// When a picture has no pixels or the computation fails.
    fn image_features(&self, pictures: &[&RgbImage]) -> Result<Vec<Feature>>;

    /// One feature for each text, in order.
    ///
    /// # Errors
    /// When the computation fails.
    fn text_features(&self, texts: &[&str]) -> Result<Vec<Feature>>;
}
