//! Which pictures are compared with which.
//!
//! The caller makes the pictures (or has them on disk); this module only measures. Base and
//! adapted picture of a pair must share prompt, seed, sampler, steps and guidance, or the
//! comparison means nothing.

use catelier_prompts::PromptKind;
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::features::{Feature, FeatureExtractor};
use crate::kps;
use crate::score::{Score, require};
use crate::scores::{Counts, FORMAT, PictureScore, Scores, VERSION};
use crate::similarity::{against, cosine, paired};

/// Everything an evaluation looks at.
#[derive(Debug, Clone)]
pub struct Evaluation<'a> {
    /// Pictures of prompts that do not contain the trigger, with and without the adapter.
    pub without_trigger: Vec<PicturePair<'a>>,
    /// Pictures of prompts that contain the trigger, with the adapter.
    pub with_trigger: Vec<TriggerPicture<'a>>,
    /// The artist's own pictures.
    pub references: Vec<&'a RgbImage>,
    /// How the pictures were made.
    pub generation: Generation,
    /// Seed of the bootstrap; the same seed gives the same intervals.
    pub bootstrap_seed: u64,
}

/// One prompt and seed, drawn by the base alone and with the adapter.
#[derive(Debug, Clone)]
pub struct PicturePair<'a> {
    /// The prompt, without the trigger.
    pub prompt: String,
    /// How near the prompt is to what the adapter was taught.
    pub kind: PromptKind,
    /// What the picture shows, for instance `house`, where that is known.
    pub class: Option<String>,
    /// The seed of the start noise.
    pub seed: u64,
    /// What the base draws.
    pub base: &'a RgbImage,
    /// What base and adapter draw.
    pub adapted: &'a RgbImage,
}

/// One prompt with the trigger, drawn with the adapter.
#[derive(Debug, Clone)]
pub struct TriggerPicture<'a> {
    /// The prompt as it would read *without* the trigger: the trigger means nothing to CLIP.
    pub prompt: String,
    /// The seed of the start noise.
    pub seed: u64,
    /// What base and adapter draw when the trigger is in the prompt.
    pub adapted: &'a RgbImage,
}

/// How the pictures were made, recorded as given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// The base model's name or fingerprint.
    pub base: String,
    /// The adapter's name or file, where there is one.
    pub adapter: Option<String>,
    /// The trigger word.
    pub trigger: Option<String>,
    /// The sampler's name.
    pub sampler: String,
    /// Sampling steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance: f64,
    /// Width of the pictures in pixels.
    pub width: u32,
    /// Height of the pictures in pixels.
    pub height: u32,
}

impl Generation {
    /// Sampler, steps and guidance in one line.
    #[must_use]
    pub fn sampling(&self) -> String {
        format!("{}, {} steps, guidance {}", self.sampler, self.steps, self.guidance)
    }
}

impl Evaluation<'_> {
    /// Measures all pictures and computes every score.
    ///
    /// Without references or pictures with the trigger, `identity` and `kps_joint` are left out;
    /// with a single pair, `class_collapse` and `base_pair_similarity` are.
    ///
    /// # Errors
    /// When there is no pair without the trigger, a picture has no pixels, or measuring fails.
    pub fn score(&self, extractor: &dyn FeatureExtractor) -> Result<Scores> {
        require("kps_no_token", "pictures without the trigger", 1, self.without_trigger.len())?;
        let features = Features::measure(self, extractor)?;
        let seed = self.bootstrap_seed;
        let kept = paired(&features.adapted, &features.base)?;
        let kps_no_token = kps::kps_no_token(&kept, seed)?;
        let identity = near_references(&features.triggered, &features.references, seed)?;
        Ok(Scores {
            format: FORMAT.to_owned(),
            version: VERSION,
            kps_no_token,
            kps_joint: identity.map(|identity| kps::kps_joint(&kps_no_token, &identity)),
            identity,
            prompt_similarity: features.adapted_prompt_similarity(seed)?,
            base_identity: near_references(&features.base, &features.references, seed)?,
            base_pair_similarity: features.base_pair_similarity(seed)?,
            base_prompt_similarity: features.base_prompt_similarity(seed)?,
            class_collapse: features.collapse(seed)?,
            kinds: kps::by_group(&self.kinds(), &kept, seed)?,
            classes: kps::by_group(&self.classes(), &kept, seed)?,
            pictures: self.picture_scores(&kept),
            counts: self.counts(),
            seeds: self.seeds(),
            bootstrap_seed: seed,
            extractor: extractor.extractor().clone(),
            generation: self.generation.clone(),
        })
    }

    fn kinds(&self) -> Vec<Option<&str>> {
        let pairs = self.without_trigger.iter();
        pairs.map(|pair| Some(kind_name(pair.kind))).collect()
    }

    fn classes(&self) -> Vec<Option<&str>> {
        let pairs = self.without_trigger.iter();
        pairs.map(|pair| pair.class.as_deref()).collect()
    }

    fn picture_scores(&self, kept: &[f64]) -> Vec<PictureScore> {
        let pairs = self.without_trigger.iter().zip(kept);
        let score = |(pair, similarity): (&PicturePair<'_>, &f64)| PictureScore {
            prompt: pair.prompt.clone(),
            kind: pair.kind,
            class: pair.class.clone(),
            seed: pair.seed,
            similarity: *similarity,
        };
        pairs.map(score).collect()
    }

    fn counts(&self) -> Counts {
        Counts {
            without_trigger: self.without_trigger.len(),
            with_trigger: self.with_trigger.len(),
            references: self.references.len(),
        }
    }

    fn seeds(&self) -> Vec<u64> {
        let without = self.without_trigger.iter().map(|pair| pair.seed);
        let with = self.with_trigger.iter().map(|picture| picture.seed);
        let each_once: std::collections::BTreeSet<u64> = without.chain(with).collect();
        each_once.into_iter().collect()
    }
}

/// The name of a kind of prompt, as in prompt sets and score files.
pub(crate) fn kind_name(kind: PromptKind) -> &'static str {
    match kind {
        PromptKind::SameClass => "same-class",
        PromptKind::Unrelated => "unrelated",
        PromptKind::Generic => "generic",
    }
}

/// The features of an evaluation's pictures and prompts, in the evaluation's order.
struct Features {
    base: Vec<Feature>,
    adapted: Vec<Feature>,
    triggered: Vec<Feature>,
    references: Vec<Feature>,
    prompts: Vec<Feature>,
    triggered_prompts: Vec<Feature>,
}

impl Features {
    fn measure(evaluation: &Evaluation<'_>, extractor: &dyn FeatureExtractor) -> Result<Self> {
        let pairs = &evaluation.without_trigger;
        let triggered = &evaluation.with_trigger;
        let base: Vec<&RgbImage> = pairs.iter().map(|pair| pair.base).collect();
        let adapted: Vec<&RgbImage> = pairs.iter().map(|pair| pair.adapted).collect();
        let with_trigger: Vec<&RgbImage> = triggered.iter().map(|one| one.adapted).collect();
        let prompts: Vec<&str> = pairs.iter().map(|pair| pair.prompt.as_str()).collect();
        let triggered_prompts: Vec<&str> = triggered.iter().map(|one| one.prompt.as_str()).collect();
        Ok(Self {
            base: extractor.image_features(&base)?,
            adapted: extractor.image_features(&adapted)?,
            triggered: extractor.image_features(&with_trigger)?,
            references: extractor.image_features(&evaluation.references)?,
            prompts: extractor.text_features(&prompts)?,
            triggered_prompts: extractor.text_features(&triggered_prompts)?,
        })
    }

    fn adapted_prompt_similarity(&self, seed: u64) -> Result<Score> {
        let mut cosines = cosines(&self.adapted, &self.prompts)?;
        cosines.extend(self::cosines(&self.triggered, &self.triggered_prompts)?);
        kps::prompt_similarity(&cosines, seed)
    }

    fn base_prompt_similarity(&self, seed: u64) -> Result<Score> {
        kps::prompt_similarity(&cosines(&self.base, &self.prompts)?, seed)
    }

    fn base_pair_similarity(&self, seed: u64) -> Result<Option<Score>> {
        if self.base.len() < 2 {
            return Ok(None);
        }
        kps::pair_similarity(&self.base, seed).map(Some)
    }

    fn collapse(&self, seed: u64) -> Result<Option<Score>> {
        if self.adapted.len() < 2 {
            return Ok(None);
        }
        kps::collapse(&self.adapted, &self.base, seed).map(Some)
    }
}

fn near_references(pictures: &[Feature], references: &[Feature], seed: u64) -> Result<Option<Score>> {
    if pictures.is_empty() || references.is_empty() {
        return Ok(None);
    }
    kps::identity(&against(pictures, references)?, seed).map(Some)
}

fn cosines(pictures: &[Feature], texts: &[Feature]) -> Result<Vec<f64>> {
    let pairs = pictures.iter().zip(texts);
    pairs.map(|(picture, text)| cosine(picture, text)).collect()
}
