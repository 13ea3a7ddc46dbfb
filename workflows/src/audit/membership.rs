//! Membership by loss: whether an adapter predicts the noise on images that it was trained on better than on others.

use candle_core::Tensor;
use catelier_adapters::AdapterSet;
use catelier_numerics::noise::{Noise, Stream};
use catelier_pipelines::data::Frame;
use catelier_pipelines::diffusion::loss;
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::{Condition, ImageSizes};
use image::RgbImage;

use crate::error::{Context, Error, Result};
use crate::event::Stage;
use crate::session::Session;

const NOISE: Stream = Stream("audit/membership");

/// Images whose losses are computed together.
const BATCH: usize = 32;

/// Noisy latents of images, the same for every adapter.
pub(super) struct Probe<'a> {
    base: &'a BaseModel,
    /// `[images, 4, height / 8, width / 8]`, scaled.
    latents: Tensor,
    /// One noise for each draw, `[1, 4, height / 8, width / 8]`, and its timestep. All images share both, so that their losses
    /// differ by the images alone.
    draws: Vec<(Tensor, u32)>,
}

impl<'a> Probe<'a> {
    /// Images, one or more, with `draws` noises at the middles of equal parts of the schedule.
    pub(super) fn new(base: &'a BaseModel, images: &[&RgbImage], draws: usize, seed: u64) -> Result<Self> {
        let latents = latents(base, images)?;
        let shape = latents.narrow(0, 0, 1).failed(ATTEMPT)?.shape().clone();
        let timestep = |draw: usize| ((2 * draw + 1) * base.schedule.len() / (2 * draws)) as u32;
        let draw = |draw: usize| -> Result<(Tensor, u32)> {
            let noise = Noise::new(seed).normal(NOISE, 0, draw as u64, shape.clone(), base.device()).failed(ATTEMPT)?;
            Ok((noise, timestep(draw)))
        };
        Ok(Self { base, latents, draws: (0..draws).map(draw).collect::<Result<_>>()? })
    }

    /// The denoising loss of each image under its caption, a mean over the draws.
    pub(super) fn losses(&self, captions: &[String], adapters: &AdapterSet, session: &Session<'_>) -> Result<Vec<f64>> {
        let condition = conditions(self.base, captions)?;
        let mut sums = vec![0.0; captions.len()];
        let places: Vec<usize> = (0..captions.len()).collect();
        let (mut done, total) = (0, self.draws.len() * captions.len());
        for (noise, timestep) in &self.draws {
            for rows in places.chunks(BATCH) {
                let losses = self.batch(rows, noise, *timestep, &condition.rows(rows).failed(ATTEMPT)?, adapters)?;
                rows.iter().zip(losses).for_each(|(row, loss)| sums[*row] += loss);
                done += rows.len();
                if session.progress(Stage::Measure, done, total, "").is_break() {
                    return Err(Error::Cancelled);
                }
            }
        }
        Ok(sums.into_iter().map(|sum| sum / self.draws.len() as f64).collect())
    }

    fn batch(
        &self,
        rows: &[usize],
        noise: &Tensor,
        timestep: u32,
        condition: &Condition,
        adapters: &AdapterSet,
    ) -> Result<Vec<f64>> {
        let BaseModel { schedule, unet, .. } = self.base;
        let losses = || -> catelier_pipelines::Result<Vec<f32>> {
            let latents = self.latents.narrow(0, rows[0], rows.len())?;
            let noise = noise.broadcast_as(latents.shape())?.contiguous()?;
            let timesteps = vec![timestep; rows.len()];
            let noisy = schedule.add_noise(&latents, &noise, &timesteps)?;
            let steps = Tensor::new(timesteps.as_slice(), noisy.device())?;
            let noise_pred = unet.predict(&noisy, &steps, condition, adapters)?.detach();
            Ok(loss::denoising(&noise_pred, &schedule.target(&latents, &noise, &timesteps)?)?.to_vec1::<f32>()?)
        };
        Ok(losses().failed(ATTEMPT)?.into_iter().map(f64::from).collect())
    }
}

const ATTEMPT: &str = "cannot compute the losses of the images";

/// The autoencoder's most likely latents of images of one size, scaled: `[images, 4, height / 8, width / 8]`.
pub(super) fn latents(base: &BaseModel, images: &[&RgbImage]) -> Result<Tensor> {
    let encode = |image: &&RgbImage| -> catelier_pipelines::Result<Tensor> {
        let sizes = ImageSizes::uncropped(image.height(), image.width());
        let frame = Frame { pixels: (*image).clone(), mirrored: false, sizes };
        base.vae.scale(&base.vae.encode(&frame.tensor(base.device())?)?.mode())
    };
    let all = images.iter().map(encode).collect::<catelier_pipelines::Result<Vec<_>>>().failed(ATTEMPT)?;
    Tensor::cat(&all, 0).failed(ATTEMPT)
}

/// One row for each caption; each distinct caption is encoded once.
fn conditions(base: &BaseModel, captions: &[String]) -> Result<Condition> {
    let mut distinct: Vec<&str> = captions.iter().map(String::as_str).collect();
    distinct.sort_unstable();
    distinct.dedup();
    let rows: Vec<usize> =
        captions.iter().map(|caption| distinct.partition_point(|other| *other < caption.as_str())).collect();
    base.text.encode(&distinct).and_then(|condition| condition.rows(&rows)).failed(ATTEMPT)
}
