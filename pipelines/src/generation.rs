//! From prompts to images: the sampling loop around the UNet, with classifier-free guidance.
//!
//! An image is a function of its prompt, its seed and the settings of the request. Its noise depends on its own seed
//! alone, so the other images in its batch do not change it. The same seed with another adapter starts from the same
//! noise, so the two images can be compared.

mod guidance;
pub mod image_file;
mod prompt_cache;
mod request;
pub mod sheet;

use std::ops::ControlFlow;

use candle_core::{DType, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::finite::is_finite;
use catelier_numerics::noise::{Noise, Stream};
use image::RgbImage;

use crate::diffusion::sampler::{self, Sampler};
use crate::error::{Error, Result};
use crate::models::base::{BaseModel, EmptyNegative};
use crate::models::{Condition, CrossAttentionKv, ImageSizes};
use guidance::Start;
pub use guidance::{GuidanceFrom, GuidanceRange};
use prompt_cache::PromptCache;
pub use request::GenerateRequest;

/// Stream of the noise at the start of a generation.
const START: Stream = Stream("generate/start");
/// Stream of the noise that ancestral samplers add, one draw per call.
const ADDED: Stream = Stream("generate/added");

/// Progress of a generation, reported after every model call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Images finished before this batch.
    pub images_done: usize,
    /// Images in this batch.
    pub batch: usize,
    /// Images in the request.
    pub images: usize,
    /// Model calls done for this batch, counted from 1.
    pub call: usize,
    /// Model calls per batch.
    pub calls: usize,
}

/// Generates images with one base model and caches its encoded prompts.
#[derive(Debug)]
pub struct Generator<'a> {
    base: &'a BaseModel,
    prompts: PromptCache,
}

/// The images of a request that are computed together.
struct Batch<'a> {
    prompts: &'a [String],
    seeds: &'a [u64],
}

/// The conditions of a batch, of one row per image each.
struct Prompt {
    /// Those that guidance starts from, and the prompts.
    parts: Vec<Condition>,
    /// `None` without guidance.
    start: Option<Start>,
    /// The context of all parts.
    context: Tensor,
    kv: CrossAttentionKv,
}

/// The conditions of a batch in the calls inside the range of guidance, and in those outside, if there are any.
struct Prompts {
    inside: Prompt,
    outside: Option<Prompt>,
}

impl Prompts {
    fn at(&self, is_inside: bool) -> &Prompt {
        self.outside.as_ref().filter(|_| !is_inside).unwrap_or(&self.inside)
    }
}

impl<'a> Generator<'a> {
    /// A generator with an empty cache.
    pub fn new(base: &'a BaseModel) -> Self {
        Self { base, prompts: PromptCache::default() }
    }

    /// The images of `request`, in its order, from the base with `adapters`. `observe` gets the progress after every
    /// model call; [`ControlFlow::Break`] stops the generation.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a request with impossible settings; [`Error::ImageNotFinite`] naming prompt, seed
    /// and step if values overflow; [`Error::Cancelled`] if `observe` stops the generation.
    pub fn generate(
        &mut self,
        request: &GenerateRequest,
        adapters: &AdapterSet,
        observe: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<RgbImage>> {
        let mut images = Vec::with_capacity(request.prompts.len());
        self.generate_each(request, adapters, observe, &mut |image| {
            images.push(image);
            ControlFlow::Continue(())
        })?;
        Ok(images)
    }

    /// As [`generate`](Self::generate); `take` gets every image as soon as its batch is done, and
    /// [`ControlFlow::Break`] stops the generation.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate); [`Error::Cancelled`] if `take` stops the generation.
    pub fn generate_each(
        &mut self,
        request: &GenerateRequest,
        adapters: &AdapterSet,
        observe: &mut dyn FnMut(Progress) -> ControlFlow<()>,
        take: &mut dyn FnMut(RgbImage) -> ControlFlow<()>,
    ) -> Result<()> {
        request.check(self.base.vae.factor())?;
        let images = request.prompts.len();
        let chunks = request.prompts.chunks(request.batch).zip(request.seeds.chunks(request.batch));
        for (chunk, (prompts, seeds)) in chunks.enumerate() {
            let batch = Batch { prompts, seeds };
            let start = self.start(request, seeds)?;
            let mut tell = |call, calls| {
                let (images_done, batch) = (chunk * request.batch, prompts.len());
                observe(Progress { images_done, batch, images, call, calls })
            };
            let latents = self.sample(request, &batch, &start, adapters, &mut tell)?;
            let decoded = self.decode(request, &batch, &latents)?;
            if decoded.into_iter().try_for_each(&mut *take).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    }

    /// The latents after every model call, with all images in one batch. `start` is unit normal noise,
    /// `[images, channels, height / factor, width / factor]`.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate).
    pub fn trajectory(
        &mut self,
        request: &GenerateRequest,
        start: &Tensor,
        adapters: &AdapterSet,
    ) -> Result<Vec<Tensor>> {
        request.check(self.base.vae.factor())?;
        let batch = Batch { prompts: &request.prompts, seeds: &request.seeds };
        let mut latents = Vec::new();
        self.walk(request, &batch, start, adapters, &mut |_, _, now| {
            latents.push(now.clone());
            ControlFlow::Continue(())
        })?;
        Ok(latents)
    }

    /// Decodes clean latents `[batch, channels, height / factor, width / factor]` to images, one at a time.
    ///
    /// # Errors
    /// [`Error::ImageNotFinite`] if the decoder overflows.
    fn decode(&self, request: &GenerateRequest, batch: &Batch<'_>, latents: &Tensor) -> Result<Vec<RgbImage>> {
        let decode = |index: usize| {
            let decoded = self.base.vae.decode(&latents.narrow(0, index, 1)?)?;
            check_finite(request, batch, index, &decoded, request.steps + 1)?;
            to_image(&decoded)
        };
        (0..batch.prompts.len()).map(decode).collect()
    }

    /// Unit normal noise from each image's own seed: `[batch, channels, height, width]`.
    fn start(&self, request: &GenerateRequest, seeds: &[u64]) -> Result<Tensor> {
        let factor = self.base.vae.factor();
        let shape =
            (1, self.base.unet.config().in_channels, request.height as usize / factor, request.width as usize / factor);
        let draw = |seed: &u64| Noise::new(*seed).normal(START, 0, 0, shape, self.base.device());
        let rows = seeds.iter().map(draw).collect::<catelier_numerics::Result<Vec<Tensor>>>()?;
        Ok(Tensor::cat(&rows, 0)?)
    }

    /// The clean latents of one batch.
    fn sample(
        &mut self,
        request: &GenerateRequest,
        batch: &Batch<'_>,
        start: &Tensor,
        adapters: &AdapterSet,
        tell: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        let mut latents = start.clone();
        self.walk(request, batch, start, adapters, &mut |call, calls, now| {
            latents = now.clone();
            tell(call + 1, calls)
        })?;
        Ok(latents)
    }

    /// The sampling loop; `after` gets (call, calls, latents) after every call.
    fn walk(
        &mut self,
        request: &GenerateRequest,
        batch: &Batch<'_>,
        start: &Tensor,
        adapters: &AdapterSet,
        after: &mut dyn FnMut(usize, usize, &Tensor) -> ControlFlow<()>,
    ) -> Result<()> {
        let prompts = self.prompts(request, batch, adapters)?;
        let mut sampler = sampler::prepare(&self.base.schedule, &request.sampler_settings())?;
        let timesteps = sampler.timesteps().to_vec();
        let mut latents = (start * sampler.initial_noise_scale())?;
        for (call, timestep) in timesteps.iter().enumerate() {
            let input = sampler.scale_input(&latents, call)?;
            let prompt = prompts.at(request.guidance_range.contains(sampler.step_of(call), request.steps));
            let output = self.guided(request, &input, *timestep, prompt, adapters)?;
            let noise = added_noise(sampler.as_ref(), call, batch.seeds, &latents)?;
            latents = sampler.step(&output, call, &latents, noise.as_ref())?.detach();
            for index in 0..batch.prompts.len() {
                check_finite(request, batch, index, &latents.narrow(0, index, 1)?, call + 1)?;
            }
            if after(call, timesteps.len(), &latents).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    }

    /// The model's output for `latents`, guided where the prompt has a start. One call computes all conditions.
    fn guided(
        &self,
        request: &GenerateRequest,
        latents: &Tensor,
        timestep: f64,
        prompt: &Prompt,
        adapters: &AdapterSet,
    ) -> Result<Tensor> {
        let (rows, unet) = (latents.dim(0)?, &self.base.unet);
        let timesteps = Tensor::from_vec(vec![timestep as f32; rows], rows, latents.device())?;
        let shared = unet.shared_prefix(latents, &timesteps, &[adapters])?;
        let prefix = |condition: &Condition| unet.prefix(&shared, condition.added.as_ref());
        let (first, others) = (&prompt.parts[0], &prompt.parts[1..]);
        let prefix = others.iter().try_fold(prefix(first)?, |all, part| all.cat(&prefix(part)?))?;
        let output = unet.predict_from(&prefix, &prompt.context, Some(&prompt.kv), adapters)?;
        let output = output.to_dtype(latents.dtype())?;
        match &prompt.start {
            Some(start) => start.guide(&output, request.guidance),
            None => Ok(output),
        }
    }

    /// The conditions of the batch.
    fn prompts(&mut self, request: &GenerateRequest, batch: &Batch<'_>, adapters: &AdapterSet) -> Result<Prompts> {
        let positive = self.prompts.rows(&self.base.text, batch.prompts, adapters)?;
        if !request.is_guided() {
            return Ok(Prompts { inside: self.prompt(request, vec![positive], None, adapters)?, outside: None });
        }
        let (start, mut parts) = self.start_of(request, batch, &positive, adapters)?;
        parts.push(positive.clone());
        let inside = self.prompt(request, parts, Some(start), adapters)?;
        let is_partial = request.guidance_range != GuidanceRange::WHOLE;
        let outside = is_partial.then(|| self.prompt(request, vec![positive], None, adapters)).transpose()?;
        Ok(Prompts { inside, outside })
    }

    /// The conditions `parts` with what the UNet makes of them once for all steps.
    fn prompt(
        &self,
        request: &GenerateRequest,
        parts: Vec<Condition>,
        start: Option<Start>,
        adapters: &AdapterSet,
    ) -> Result<Prompt> {
        let sizes = vec![ImageSizes::uncropped(request.height, request.width); parts[0].batch()?];
        let parts = parts.into_iter().map(|part| part.with_sizes(&sizes)).collect::<Result<Vec<_>>>()?;
        let contexts: Vec<&Tensor> = parts.iter().map(|part| &part.context).collect();
        let context = Tensor::cat(&contexts, 0)?;
        let kv = self.base.unet.cross_attention_kv(&context, adapters)?;
        Ok(Prompt { parts, start, context, kv })
    }

    /// What guidance starts from, and the conditions of it.
    fn start_of(
        &mut self,
        request: &GenerateRequest,
        batch: &Batch<'_>,
        positive: &Condition,
        adapters: &AdapterSet,
    ) -> Result<(Start, Vec<Condition>)> {
        let negative = request.negative.as_deref();
        let trigger = |prompt: &String| guidance::trigger_prompt(prompt, &request.triggers, negative);
        let triggers: Vec<Option<String>> = batch.prompts.iter().map(trigger).collect();
        let has_trigger: Vec<bool> = triggers.iter().map(Option::is_some).collect();
        let negative = self.negative(request, positive, adapters)?;
        if request.guidance_from == GuidanceFrom::EMPTY || !has_trigger.contains(&true) {
            return Ok((Start::One, vec![negative]));
        }
        // A prompt without a trigger has no share in these.
        let texts: Vec<String> = triggers.into_iter().map(Option::unwrap_or_default).collect();
        let triggers = self.prompts.rows(&self.base.text, &texts, adapters)?;
        if request.guidance_from != GuidanceFrom::TRIGGER {
            let start = Start::mixture(request.guidance_from, &has_trigger, self.base.device())?;
            return Ok((start, vec![negative, triggers]));
        }
        let images = has_trigger.len();
        let rows: Vec<usize> =
            has_trigger.iter().enumerate().map(|(image, has)| if *has { images + image } else { image }).collect();
        Ok((Start::One, vec![Condition::cat(&[&negative, &triggers])?.rows(&rows)?]))
    }

    /// The negative prompt in as many rows as `positive` has; zeros if the model was trained with zeros.
    fn negative(
        &mut self,
        request: &GenerateRequest,
        positive: &Condition,
        adapters: &AdapterSet,
    ) -> Result<Condition> {
        let rows = positive.batch()?;
        if request.negative.is_none() && self.base.empty_negative == EmptyNegative::Zeros {
            return zeros_like(positive);
        }
        let negative = request.negative.clone().unwrap_or_default();
        self.prompts.rows(&self.base.text, &[negative], adapters)?.repeat(rows)
    }
}

/// The images of `request`: [`Generator::generate`] without progress and with a cache for this call only.
///
/// # Errors
/// Those of [`Generator::generate`].
pub fn generate(base: &BaseModel, request: &GenerateRequest, adapters: &AdapterSet) -> Result<Vec<RgbImage>> {
    Generator::new(base).generate(request, adapters, &mut |_| ControlFlow::Continue(()))
}

/// Converts a decoded image `[1, 3, height, width]` to eight-bit pixels; values are clamped to -1..=1.
///
/// # Errors
/// [`Error::InvalidInput`] for another shape.
pub fn to_image(decoded: &Tensor) -> Result<RgbImage> {
    let (batch, channels, height, width) = decoded.dims4()?;
    let bytes = ((decoded.to_dtype(DType::F32)? * 127.5)? + 127.5)?.clamp(0_f32, 255_f32)?.round()?;
    let pixels = bytes.permute((0, 2, 3, 1))?.flatten_all()?.to_dtype(DType::U8)?.to_vec1::<u8>()?;
    let image = match (batch, channels) {
        (1, 3) => RgbImage::from_raw(width as u32, height as u32, pixels),
        _ => None,
    };
    image.ok_or_else(|| Error::InvalidInput {
        what: "decoded image",
        expected: "[1, 3, height, width]".into(),
        found: format!("{:?}", decoded.dims()),
    })
}

/// The noise of a call, from each image's own seed; `None` for a call that draws none.
fn added_noise(sampler: &dyn Sampler, call: usize, seeds: &[u64], latents: &Tensor) -> Result<Option<Tensor>> {
    if !sampler.draws_noise(call) {
        return Ok(None);
    }
    let (_, channels, height, width) = latents.dims4()?;
    let shape = (1, channels, height, width);
    let draw = |seed: &u64| Noise::new(*seed).normal(ADDED, call as u64, 0, shape, latents.device());
    let rows = seeds.iter().map(draw).collect::<catelier_numerics::Result<Vec<Tensor>>>()?;
    Ok(Some(Tensor::cat(&rows, 0)?.to_dtype(latents.dtype())?))
}

fn check_finite(
    request: &GenerateRequest,
    batch: &Batch<'_>,
    index: usize,
    values: &Tensor,
    step: usize,
) -> Result<()> {
    if is_finite(values)? {
        return Ok(());
    }
    Err(Error::ImageNotFinite {
        prompt: batch.prompts[index].clone(),
        seed: batch.seeds[index],
        step,
        steps: request.steps,
    })
}

fn zeros_like(condition: &Condition) -> Result<Condition> {
    let mut zeros = condition.clone();
    zeros.context = zeros.context.zeros_like()?;
    if let Some(added) = &mut zeros.added {
        added.pooled = added.pooled.zeros_like()?;
    }
    Ok(zeros)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn decoded_values_become_eight_bits_and_are_clamped() {
        let values = [[-1.0_f32, 1.0], [0.0, 3.0]];
        let channel = Tensor::new(&values, &Device::Cpu).unwrap();
        let decoded = Tensor::stack(&[&channel, &channel, &channel], 0).unwrap().unsqueeze(0).unwrap();
        let image = to_image(&decoded).unwrap();
        let red: Vec<u8> = image.pixels().map(|pixel| pixel[0]).collect();
        assert_eq!(red, [0, 255, 128, 255]);
    }

    #[test]
    fn a_tensor_of_another_shape_is_no_image() {
        let two = Tensor::zeros((2, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(to_image(&two), Err(Error::InvalidInput { .. })));
    }
}
