//! Generates images with one base and one set of sampling settings, for every workflow that shows or scores images.

use std::ops::ControlFlow;

use catelier_adapters::AdapterSet;
use catelier_evaluation::Generation;
use catelier_pipelines::generation::image_file::ImageParameters;
use catelier_pipelines::generation::{GenerateRequest, Generator, GuidanceFrom, Progress};
use catelier_pipelines::models::base::BaseModel;
use catelier_prompts::Trigger;
use image::RgbImage;

use crate::base::Base;
use crate::error::{Context, Result};
use crate::event::Stage;
use crate::session::Session;
use crate::settings::ResolvedSampling;

/// Bases of images no larger than this generate several at a time.
const SMALL_PX: usize = 128;
/// How many.
const SMALL_BATCH: usize = 8;

/// A base, its sampling settings, and the prompts that it has encoded so far.
pub struct ImageGenerator<'a> {
    base: &'a BaseModel,
    generator: Generator<'a>,
    settings: GenerateRequest,
}

/// Images to generate, one for each prompt and seed.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    /// The prompts.
    pub prompts: &'a [String],
    /// As many seeds.
    pub seeds: &'a [u64],
}

impl<'a> ImageGenerator<'a> {
    /// A generator with these settings, which has not seen a prompt yet.
    pub fn new(base: &'a Base, sampling: &ResolvedSampling) -> Self {
        let settings = GenerateRequest {
            negative: Some(sampling.negative.clone()).filter(|negative| !negative.is_empty()),
            steps: sampling.steps,
            guidance: sampling.guidance,
            guidance_from: sampling.guidance_from.0,
            guidance_range: sampling.guidance_range.0,
            sampler: sampling.sampler.0,
            width: sampling.size.0.width,
            height: sampling.size.0.height,
            batch: if base.defaults().resolution <= SMALL_PX { SMALL_BATCH } else { 1 },
            ..GenerateRequest::default()
        };
        Self { base: &base.model, generator: Generator::new(&base.model), settings }
    }

    /// The same generator, where guidance may start from `triggers`.
    #[must_use]
    pub fn with_triggers(mut self, triggers: Vec<Trigger>) -> Self {
        self.settings.triggers = triggers;
        self
    }

    /// The images, in their order; progress is reported as `stage`.
    ///
    /// # Errors
    /// [`Error::Failed`](crate::Error::Failed) when the base cannot, [`Error::Cancelled`](crate::Error::Cancelled)
    /// between sampler steps.
    pub fn generate(
        &mut self,
        stage: Stage,
        images: Images<'_>,
        adapters: &AdapterSet,
        session: &Session<'_>,
    ) -> Result<Vec<RgbImage>> {
        let mut all = Vec::with_capacity(images.prompts.len());
        self.generate_each(stage, images, adapters, session, &mut |image| {
            all.push(image);
            Ok(())
        })?;
        Ok(all)
    }

    /// As [`generate`](Self::generate), with every image handed to `each` as soon as it is there.
    ///
    /// # Errors
    /// Those of [`generate`](Self::generate) and of `each`.
    pub fn generate_each(
        &mut self,
        stage: Stage,
        images: Images<'_>,
        adapters: &AdapterSet,
        session: &Session<'_>,
        each: &mut dyn FnMut(RgbImage) -> Result<()>,
    ) -> Result<()> {
        const ATTEMPT: &str = "cannot generate images";
        session.check_cancelled()?;
        let (prompts, seeds) = (images.prompts.to_vec(), images.seeds.to_vec());
        let request = GenerateRequest { prompts, seeds, ..self.settings.clone() };
        let mut progress =
            |at: Progress| session.progress(stage, at.images_done + at.batch * at.call / at.calls, at.images, "");
        let mut handed = Ok(());
        let mut take = |image| {
            handed = each(image);
            if handed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let generated = self.generator.generate_each(&request, adapters, &mut progress, &mut take);
        handed?;
        match generated {
            // Steps, size, guidance and sampler are the user's to change.
            Err(error @ catelier_pipelines::Error::InvalidSetting { .. }) => Err(error).user_error(ATTEMPT),
            generated => generated.failed(ATTEMPT),
        }
    }

    /// What the PNG of an image says about it.
    pub fn parameters(&self, prompt: &str, seed: u64, adapters: &[(String, String)]) -> ImageParameters {
        ImageParameters {
            prompt: prompt.to_string(),
            negative: self.settings.negative.clone(),
            steps: self.settings.steps,
            sampler: self.settings.sampler.label().to_string(),
            guidance: self.settings.guidance,
            guidance_from: self.guidance_from(prompt),
            guidance_range: self.settings.guidance_range,
            seed,
            width: self.settings.width,
            height: self.settings.height,
            model: self.base.name.clone(),
            model_hash: Some(self.base.fingerprint.clone()),
            adapters: adapters.to_vec(),
            version: concat!("catelier ", env!("CARGO_PKG_VERSION")).to_string(),
        }
    }

    /// Where guidance starts from for a prompt, which may have no trigger.
    fn guidance_from(&self, prompt: &str) -> GuidanceFrom {
        let has_trigger = self.settings.triggers.iter().any(|trigger| trigger.is_in(prompt));
        if has_trigger { self.settings.guidance_from } else { GuidanceFrom::EMPTY }
    }

    /// What a score file says about how its images were made.
    pub fn generation(&self, adapter: Option<&str>, trigger: Option<&str>) -> Generation {
        Generation {
            base: self.base.name.clone(),
            adapter: adapter.map(str::to_string),
            trigger: trigger.map(str::to_string),
            sampler: self.settings.sampler.name().to_string(),
            steps: self.settings.steps,
            guidance: self.settings.guidance,
            guidance_from: self.settings.guidance_from.to_string(),
            guidance_range: self.settings.guidance_range.to_string(),
            width: self.settings.width,
            height: self.settings.height,
        }
    }

    /// The settings in one line, for the heading of a sheet.
    pub fn caption(&self, seed: u64) -> String {
        let (steps, sampler) = (self.settings.steps, self.settings.sampler.label());
        format!("{steps} steps of {sampler}, {}, seed {seed}", self.generation(None, None).guidance_in_words())
    }
}
