//! The traits of feature extractors: images, and for some also texts, to directions in one space.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// The feature of one image or text: a direction in the extractor's space.
pub type Feature = Vec<f32>;

/// The identity of an extractor; features and scores of different extractors cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extractor {
    /// The model's name, for instance the name of its folder.
    pub name: String,
    /// SHA-256 of its weights file, in hexadecimal.
    pub sha256: String,
}

/// Turns images into features.
pub trait ImageFeatures {
    /// Name and hash, to be recorded beside every score.
    fn extractor(&self) -> &Extractor;

    /// One feature for each image, in order.
    ///
    /// # Errors
    /// When an image has no pixels or the computation fails.
    fn image_features(&self, images: &[&RgbImage]) -> Result<Vec<Feature>>;
}

/// Turns texts into features in the same space as the images' features.
///
/// An extractor without a text side, such as DINOv2, implements [`ImageFeatures`] alone.
pub trait TextFeatures: ImageFeatures {
    /// One feature for each text, in order.
    ///
    /// # Errors
    /// When a text cannot be tokenized or the computation fails.
    fn text_features(&self, texts: &[&str]) -> Result<Vec<Feature>>;
}
