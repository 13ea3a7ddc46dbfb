//! The latents of every frame, made once before training.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};

use super::folder::TrainingPictures;
use crate::error::{Error, Result};
use crate::model::{ImageSizes, Moments};

/// One frame after the autoencoder. The whole distribution is kept, so that each step can draw its own sample.
#[derive(Debug, Clone)]
pub struct EncodedFrame {
    /// Number of the picture in its [`TrainingPictures`].
    pub picture: usize,
    /// Whether it is the mirror image.
    pub mirrored: bool,
    /// Mean and log variance, each `[1, channels, height / 8, width / 8]`, not scaled, detached.
    pub moments: Moments,
    /// What SDXL is told about scale and crop.
    pub sizes: ImageSizes,
}

/// The encoded frames of a training folder, in memory: 130 kB for a frame of 512x512 pixels.
#[derive(Debug, Clone)]
pub struct LatentCache {
    frames: Vec<EncodedFrame>,
}

impl LatentCache {
    /// Encodes every frame with `encode`, which takes `[1, 3, height, width]` in -1..=1. After each frame `encoded`
    /// gets the number of encoded frames and of all; [`ControlFlow::Break`] stops there.
    ///
    /// # Errors
    /// Those of `encode`, when the device is out of memory, and [`Error::Cancelled`] when `encoded` stopped it.
    pub fn encode(
        pictures: &TrainingPictures,
        device: &Device,
        mut encode: impl FnMut(&Tensor) -> Result<Moments>,
        mut encoded: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Self> {
        let total = pictures.frame_count();
        let mut frames = Vec::with_capacity(total);
        for (number, picture) in pictures.pictures.iter().enumerate() {
            for frame in &picture.frames {
                let moments = encode(&frame.tensor(device)?)?;
                frames.push(EncodedFrame {
                    picture: number,
                    mirrored: frame.mirrored,
                    moments: Moments { mean: moments.mean.detach(), logvar: moments.logvar.detach() },
                    sizes: frame.sizes,
                });
                if encoded(frames.len(), total).is_break() {
                    return Err(Error::Cancelled);
                }
            }
        }
        Ok(Self { frames })
    }

    /// Every frame, picture by picture, the mirror image after the picture.
    pub fn frames(&self) -> &[EncodedFrame] {
        &self.frames
    }
}
