//! The latents of every frame, made once before training.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};

use super::folder::TrainingImages;
use crate::error::{Error, Result};
use crate::models::{ImageSizes, Moments};

/// One frame after the autoencoder. The whole distribution is kept, so that each step can draw its own sample.
#[derive(Debug, Clone)]
pub struct EncodedFrame {
    /// Number of the image in its [`TrainingImages`].
    pub image: usize,
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
        images: &TrainingImages,
        device: &Device,
        mut encode: impl FnMut(&Tensor) -> Result<Moments>,
        mut encoded: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Self> {
        let total = images.frame_count();
        let mut frames = Vec::with_capacity(total);
        for (number, image) in images.images.iter().enumerate() {
            for frame in &image.frames {
                let moments = encode(&frame.tensor(device)?)?;
                frames.push(EncodedFrame {
                    image: number,
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

    /// Every frame, image by image, the mirror image after the image.
    pub fn frames(&self) -> &[EncodedFrame] {
        &self.frames
    }
}
