//! The settings of a generation.

use catelier_prompts::Trigger;

use super::guidance::{GuidanceFrom, GuidanceRange};
use crate::diffusion::Spacing;
use crate::diffusion::sampler::{SamplerKind, SamplerSettings};
use crate::error::{Error, Result};

/// The prompts, the seeds and the common settings of some images.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// One prompt per image.
    pub prompts: Vec<String>,
    /// One seed per image.
    pub seeds: Vec<u64>,
    /// The negative prompt; `None` is the empty prompt, or zeros if the model was trained with zeros.
    pub negative: Option<String>,
    /// Sampler steps.
    pub steps: usize,
    /// Strength of classifier-free guidance; at 1 or below there is no guidance, and the UNet does half the work.
    pub guidance: f64,
    /// Where guidance starts from.
    pub guidance_from: GuidanceFrom,
    /// The steps in which guidance acts.
    pub guidance_range: GuidanceRange,
    /// The triggers of the adapters; guidance starts from those that a prompt has.
    pub triggers: Vec<Trigger>,
    /// The sampler.
    pub sampler: SamplerKind,
    /// The timesteps that the sampler visits; `None` takes the model's configuration.
    pub spacing: Option<Spacing>,
    /// Karras sigmas, for samplers with sigmas; `None` takes the model's configuration.
    pub karras: Option<bool>,
    /// Width in pixels, a multiple of the autoencoder's factor (8).
    pub width: u32,
    /// Height in pixels, a multiple of the autoencoder's factor (8).
    pub height: u32,
    /// Images in a batch, at least 1; it does not change the images.
    pub batch: usize,
}

impl Default for GenerateRequest {
    /// No images yet; 25 steps of DDIM at guidance 7.5, 512 × 512 pixels, batches of one.
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            seeds: Vec::new(),
            negative: None,
            steps: 25,
            guidance: 7.5,
            guidance_from: GuidanceFrom::default(),
            guidance_range: GuidanceRange::default(),
            triggers: Vec::new(),
            sampler: SamplerKind::Ddim,
            spacing: None,
            karras: None,
            width: 512,
            height: 512,
            batch: 1,
        }
    }
}

impl GenerateRequest {
    /// Whether there is guidance.
    pub fn is_guided(&self) -> bool {
        self.guidance > 1.0
    }

    /// Refuses settings of guidance that would change nothing.
    fn check_guidance(&self) -> Result<()> {
        let (from, range) = (self.guidance_from, self.guidance_range);
        let refuse =
            |setting, value: String, rule: &str| Err(Error::InvalidSetting { setting, value, rule: rule.into() });
        if from != GuidanceFrom::EMPTY && !self.is_guided() {
            return refuse("guidance_from", from.to_string(), "needs a guidance above 1");
        }
        if from != GuidanceFrom::EMPTY && self.triggers.is_empty() {
            return refuse("guidance_from", from.to_string(), "needs a trigger, and no adapter names one");
        }
        if range == GuidanceRange::WHOLE {
            return Ok(());
        }
        if !self.is_guided() {
            return refuse("guidance_range", range.to_string(), "needs a guidance above 1");
        }
        match (0..self.steps).any(|step| range.contains(step, self.steps)) {
            true => Ok(()),
            false => refuse("guidance_range", range.to_string(), "must contain the beginning of a step"),
        }
    }

    pub(super) fn sampler_settings(&self) -> SamplerSettings {
        SamplerSettings { spacing: self.spacing, karras: self.karras, ..SamplerSettings::new(self.sampler, self.steps) }
    }

    /// Refuses a request with impossible settings; `factor` is the width of a latent cell in pixels.
    pub(super) fn check(&self, factor: usize) -> Result<()> {
        let refuse = |setting, value: String, rule: String| Err(Error::InvalidSetting { setting, value, rule });
        if self.seeds.len() != self.prompts.len() {
            let rule = format!("must be one for each of the {} prompts", self.prompts.len());
            return refuse("seeds", self.seeds.len().to_string(), rule);
        }
        if self.batch == 0 {
            return refuse("batch", "0".into(), "must be at least 1".into());
        }
        if !self.guidance.is_finite() {
            return refuse("guidance", self.guidance.to_string(), "must be a finite number".into());
        }
        self.check_guidance()?;
        for (setting, side) in [("width", self.width), ("height", self.height)] {
            if side == 0 || !(side as usize).is_multiple_of(factor) {
                return refuse(setting, side.to_string(), format!("must be a multiple of {factor} pixels"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> GenerateRequest {
        let (prompts, seeds) = (vec!["a teapot".into()], vec![7]);
        GenerateRequest { prompts, seeds, ..GenerateRequest::default() }
    }

    #[test]
    fn a_complete_request_is_accepted() {
        request().check(8).unwrap();
    }

    #[test]
    fn requests_that_cannot_be_carried_out_name_the_setting() {
        let bad = [
            (GenerateRequest { seeds: vec![], ..request() }, "`seeds`"),
            (GenerateRequest { batch: 0, ..request() }, "`batch`"),
            (GenerateRequest { guidance: f64::NAN, ..request() }, "`guidance`"),
            (GenerateRequest { width: 500, ..request() }, "`width`"),
            (GenerateRequest { height: 0, ..request() }, "`height`"),
            (GenerateRequest { guidance_from: GuidanceFrom::TRIGGER, ..request() }, "`guidance_from`"),
            (GenerateRequest { guidance_range: "0.99-1".parse().unwrap(), ..request() }, "`guidance_range`"),
            (
                GenerateRequest { guidance: 1.0, guidance_range: "0-0.5".parse().unwrap(), ..request() },
                "`guidance_range`",
            ),
        ];
        for (request, setting) in bad {
            let error = request.check(8).unwrap_err().to_string();
            assert!(error.contains(setting), "{error}");
        }
    }
}
