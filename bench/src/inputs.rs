//! Random inputs for the workloads.

use candle_core::{DType, Device, Tensor};
use catelier_numerics::noise::{Noise, Stream};
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{AddedCondition, Condition, ImageSizes, TextEncoderConfig, UNet, UNetConfig};
use catelier_pipelines::{Error, Result};

/// Seed of all inputs. It is fixed, so that two runs of a workload do the same arithmetic.
const SEED: u64 = 1;
const LATENTS: Stream = Stream("workload/latents");
const NOISE: Stream = Stream("workload/noise");
const CONTEXT: Stream = Stream("workload/context");
const POOLED: Stream = Stream("workload/pooled");
const IMAGE: Stream = Stream("workload/image");

/// The largest size: no machine has the memory for more.
const LARGEST: usize = 1024;

/// Sizes of a workload's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkloadSizes {
    /// Height and width of the square latents in cells, 1..=1024; a cell of Stable Diffusion is 8 pixels wide.
    pub latent: usize,
    /// Samples computed together, 1..=1024.
    pub batch: usize,
}

impl WorkloadSizes {
    /// Refuses sizes outside their range.
    pub(super) fn check(self) -> Result<()> {
        check_range("latent", self.latent)?;
        check_range("batch", self.batch)
    }

    /// `[batch, channels, latent, latent]`, unit normal.
    pub(super) fn latents(self, config: &UNetConfig, device: &Device) -> Result<Tensor> {
        self.normal(LATENTS, config.in_channels, device)
    }

    /// Noise with the shape of the latents.
    pub(super) fn noise(self, config: &UNetConfig, device: &Device) -> Result<Tensor> {
        self.normal(NOISE, config.in_channels, device)
    }

    /// One timestep per sample, spread evenly over the schedule.
    pub(super) fn timesteps(self, steps: usize) -> Vec<u32> {
        (0..self.batch).map(|sample| ((2 * sample + 1) * steps / (2 * self.batch)) as u32).collect()
    }

    /// A random image `[batch, channels, side, side]` for the autoencoder.
    pub(super) fn image(self, channels: usize, factor: usize, device: &Device) -> Result<Tensor> {
        let side = self.latent * factor;
        let image = Noise::new(SEED).normal(IMAGE, 0, 0, (self.batch, channels, side, side), device)?;
        Ok(image.clamp(-1f32, 1f32)?)
    }

    fn normal(self, stream: Stream, channels: usize, device: &Device) -> Result<Tensor> {
        Ok(Noise::new(SEED).normal(stream, 0, 0, (self.batch, channels, self.latent, self.latent), device)?)
    }
}

/// Refuses a `value` outside 1..=1024.
pub(super) fn check_range(setting: &'static str, value: usize) -> Result<()> {
    if (1..=LARGEST).contains(&value) {
        return Ok(());
    }
    let rule = format!("must lie in 1..={LARGEST}");
    Err(Error::InvalidSetting { setting, value: value.to_string(), rule })
}

/// A random condition for `unet`, with the width and length of encoded prompts; `which` selects one of several
/// conditions.
pub(super) fn condition(
    files: &ModelFiles,
    unet: &UNet,
    sizes: WorkloadSizes,
    which: u64,
    device: &Device,
) -> Result<Condition> {
    let tokens = TextEncoderConfig::load(files, "text_encoder")?.max_position_embeddings;
    let (noise, batch) = (Noise::new(SEED), sizes.batch);
    let context = noise.normal(CONTEXT, which, 0, (batch, tokens, unet.config().context_width()), device)?;
    let added = match &unet.config().added {
        None => None,
        Some(added) => {
            let pooled_width = added.input_width.saturating_sub(6 * added.time_width);
            let pooled = noise.normal(POOLED, which, 0, (batch, pooled_width), device)?;
            let side = 8 * sizes.latent as u32;
            let time_ids = ImageSizes::time_ids(&vec![ImageSizes::uncropped(side, side); batch], DType::F32, device)?;
            Some(AddedCondition { pooled, time_ids })
        }
    };
    Ok(Condition { context, added })
}
