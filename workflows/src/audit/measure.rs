//! What images are compared by to find copies, and whether it finds them.

use candle_core::Tensor;
use catelier_features::ImageFeatures;
use catelier_numerics::noise::{Noise, Stream};
use catelier_pipelines::generation::to_image;
use catelier_pipelines::models::base::BaseModel;
use image::RgbImage;
use image::imageops::{self, FilterType};
use serde::{Deserialize, Serialize};

use super::copying::{Compared, Copying, Nearness};
use super::membership::latents;
use crate::error::{Context, Result};
use crate::scoring::Towers;

/// Side of the images that [`Measure::Pixels`] compares, in pixels.
const SMALL: u32 = 16;

/// Noise of the copies by which a measure is tried, in standard deviations of a latent.
pub(super) const COPY_NOISE: [f64; 3] = [0.0, 0.5, 1.0];

const COPIES: Stream = Stream("audit/copies");

/// What images are compared by; each as the correlation of features around the mean of the artist's held-out images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// The pixels at 16 x 16.
    Pixels,
    /// The autoencoder's latents.
    #[default]
    Latents,
    /// The embedded CLIP.
    Clip,
    /// The embedded style tower.
    Style,
}

/// What features are computed with.
#[derive(Clone, Copy)]
pub(super) struct Eyes<'a> {
    pub(super) base: &'a BaseModel,
    pub(super) towers: &'a Towers,
}

/// How well a measure knows copies when it sees them: training images, encoded, covered with noise and decoded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trial {
    /// The measure.
    pub measure: Measure,
    /// Deviation of the noise in the copies' latents, whose own is about 1.
    pub noise: f64,
    /// What the measure finds in the copies.
    pub copying: Copying,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pixels, Self::Latents, Self::Clip, Self::Style];

    /// One feature for each image.
    pub(super) fn features(self, eyes: Eyes<'_>, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
        let of_tower = |tower: &dyn ImageFeatures| tower.image_features(images).failed("cannot compare images");
        match self {
            Self::Pixels => Ok(images.iter().map(|image| small(image)).collect()),
            Self::Latents => {
                let latents = latents(eyes.base, images)?;
                latents.flatten_from(1).and_then(|rows| rows.to_vec2()).failed("cannot compare images")
            }
            Self::Clip => of_tower(eyes.towers.clip()),
            Self::Style => of_tower(eyes.towers.style()),
        }
    }

    /// Features of an artist's training images and of the held-out images with the caption of each.
    pub(super) fn compared(
        self,
        eyes: Eyes<'_>,
        members: &[&RgbImage],
        held_out: &[Vec<RgbImage>],
    ) -> Result<Compared> {
        let flat: Vec<&RgbImage> = held_out.iter().flatten().collect();
        let mut features = self.features(eyes, &flat)?.into_iter();
        let held_out = held_out.iter().map(|images| features.by_ref().take(images.len()).collect()).collect();
        Ok(Compared::new(self.features(eyes, members)?, held_out))
    }

    /// The nearness of the training images to their own copies, with each noise of [`COPY_NOISE`].
    pub(super) fn of_copies(
        self,
        eyes: Eyes<'_>,
        members: &[&RgbImage],
        held_out: &[Vec<RgbImage>],
        seed: u64,
    ) -> Result<Vec<Nearness>> {
        let compared = self.compared(eyes, members, held_out)?;
        let nearness = |noise: f64| {
            let copies = copies(eyes.base, members, noise, seed)?;
            Ok(compared.nearness(&self.features(eyes, &copies.iter().collect::<Vec<_>>())?))
        };
        COPY_NOISE.into_iter().map(nearness).collect()
    }
}

/// The pixels at [`SMALL`] size, 0 to 255.
fn small(image: &RgbImage) -> Vec<f32> {
    let small = imageops::resize(image, SMALL, SMALL, FilterType::Triangle);
    small.into_raw().into_iter().map(f32::from).collect()
}

/// Images, encoded and decoded with noise of this deviation between.
fn copies(base: &BaseModel, images: &[&RgbImage], noise: f64, seed: u64) -> Result<Vec<RgbImage>> {
    let latents = latents(base, images)?;
    let copy = |place: usize| -> catelier_pipelines::Result<RgbImage> {
        let own: Tensor = latents.narrow(0, place, 1)?;
        let drawn = Noise::new(seed).normal(COPIES, 0, place as u64, own.shape().clone(), base.device());
        let drawn = drawn.map_err(candle_core::Error::wrap)?;
        to_image(&base.vae.decode(&(own + (drawn * noise)?)?)?)
    };
    (0..images.len()).map(copy).collect::<catelier_pipelines::Result<_>>().failed("cannot copy the training images")
}
