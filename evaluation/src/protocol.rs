//! Which pictures are compared with which.
//!
//! The caller makes the pictures (or has them on disk); this module only measures. Base and
//! adapted picture of a pair must share prompt, seed, sampler, steps and guidance, or the
//! comparison means nothing.

use std::collections::{BTreeMap, BTreeSet};

use catelier_features::{Feature, TextFeatures};
use catelier_prompts::PromptKind;
use image::RgbImage;

use crate::error::{Error, Result};
use crate::kps;
use crate::score::{Score, require};
use crate::scores::{Counts, FORMAT, Generation, PictureScore, Scores, VERSION};
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

/// The features that all adapters of one base share: its images, the references and the prompts, measured once.
pub struct Baseline<'a> {
    extractor: &'a dyn TextFeatures,
    base: Vec<Feature>,
    references: Vec<Feature>,
    prompts: BTreeMap<String, Feature>,
}

impl<'a> Baseline<'a> {
    /// Measures the base's images, one for each pair without the trigger and in their order, the references, and the
    /// prompts, each once however often it is given.
    ///
    /// # Errors
    /// When an image has no pixels or measuring fails.
    pub fn measure(
        base: &[&RgbImage],
        references: &[&RgbImage],
        prompts: &[&str],
        extractor: &'a dyn TextFeatures,
    ) -> Result<Self> {
        Ok(Self {
            extractor,
            base: extractor.image_features(base)?,
            references: extractor.image_features(references)?,
            prompts: text_features(prompts, extractor)?,
        })
    }
}

impl Evaluation<'_> {
    /// Measures all images and computes every score.
    ///
    /// Without references or images with the trigger, `identity` and `kps_joint` are left out;
    /// with a single pair, `class_collapse` and `base_pair_similarity` are.
    ///
    /// # Errors
    /// When there is no pair without the trigger, an image has no pixels, or measuring fails.
    pub fn score(&self, extractor: &dyn TextFeatures) -> Result<Scores> {
        self.require_pairs()?;
        self.score_against(&self.baseline(extractor)?)
    }

    /// What [`score`](Self::score) measures of the base, to be shared with other evaluations of the same base, prompts
    /// and references.
    ///
    /// # Errors
    /// When an image has no pixels or measuring fails.
    pub fn baseline<'e>(&self, extractor: &'e dyn TextFeatures) -> Result<Baseline<'e>> {
        let base: Vec<&RgbImage> = self.without_trigger.iter().map(|pair| pair.base).collect();
        Baseline::measure(&base, &self.references, &self.prompts(), extractor)
    }

    /// The same scores as [`score`](Self::score), with the base, the references and the prompts measured before:
    /// only the adapted images are measured here, and prompts that the baseline lacks.
    ///
    /// # Errors
    /// As [`score`](Self::score), and when the baseline has another number of images or references.
    pub fn score_against(&self, baseline: &Baseline<'_>) -> Result<Scores> {
        self.require_pairs()?;
        self.require_fits(baseline)?;
        let features = Features::measure(self, baseline)?;
        let seed = self.bootstrap_seed;
        let kept = paired(&features.adapted, features.base)?;
        let kps_no_token = kps::kps_no_token(&kept, seed)?;
        let identity = near_references(&features.triggered, features.references, seed)?;
        Ok(Scores {
            format: FORMAT.to_owned(),
            version: VERSION,
            kps_no_token,
            kps_joint: identity.map(|identity| kps::kps_joint(&kps_no_token, &identity)),
            identity,
            prompt_similarity: features.adapted_prompt_similarity(seed)?,
            base_identity: near_references(features.base, features.references, seed)?,
            base_pair_similarity: features.base_pair_similarity(seed)?,
            base_prompt_similarity: features.base_prompt_similarity(seed)?,
            class_collapse: features.collapse(seed)?,
            kinds: kps::by_group(&self.kinds(), &kept, seed)?,
            classes: kps::by_group(&self.classes(), &kept, seed)?,
            pictures: self.picture_scores(&kept),
            counts: self.counts(),
            seeds: self.seeds(),
            bootstrap_seed: seed,
            extractor: baseline.extractor.extractor().clone(),
            generation: self.generation.clone(),
        })
    }

    fn require_pairs(&self) -> Result<()> {
        require("kps_no_token", "pictures without the trigger", 1, self.without_trigger.len())
    }

    fn require_fits(&self, baseline: &Baseline<'_>) -> Result<()> {
        require_equal("base images and pairs", baseline.base.len(), self.without_trigger.len())?;
        require_equal("references", baseline.references.len(), self.references.len())
    }

    fn prompts(&self) -> Vec<&str> {
        let without = self.without_trigger.iter().map(|pair| pair.prompt.as_str());
        without.chain(self.with_trigger.iter().map(|one| one.prompt.as_str())).collect()
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
        let each_once: BTreeSet<u64> = without.chain(with).collect();
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

fn require_equal(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::LengthMismatch { what, expected, found }) }
}

/// The features of an evaluation's images and prompts, in the evaluation's order.
struct Features<'b> {
    base: &'b [Feature],
    adapted: Vec<Feature>,
    triggered: Vec<Feature>,
    references: &'b [Feature],
    prompts: Vec<Feature>,
    triggered_prompts: Vec<Feature>,
}

impl<'b> Features<'b> {
    fn measure(evaluation: &Evaluation<'_>, baseline: &'b Baseline<'_>) -> Result<Self> {
        let extractor = baseline.extractor;
        let adapted: Vec<&RgbImage> = evaluation.without_trigger.iter().map(|pair| pair.adapted).collect();
        let triggered: Vec<&RgbImage> = evaluation.with_trigger.iter().map(|one| one.adapted).collect();
        let mut prompts = prompt_features(evaluation, baseline)?;
        let triggered_prompts = prompts.split_off(adapted.len());
        Ok(Self {
            base: &baseline.base,
            adapted: extractor.image_features(&adapted)?,
            triggered: extractor.image_features(&triggered)?,
            references: &baseline.references,
            prompts,
            triggered_prompts,
        })
    }

    fn adapted_prompt_similarity(&self, seed: u64) -> Result<Score> {
        let mut cosines = cosines(&self.adapted, &self.prompts)?;
        cosines.extend(self::cosines(&self.triggered, &self.triggered_prompts)?);
        kps::prompt_similarity(&cosines, seed)
    }

    fn base_prompt_similarity(&self, seed: u64) -> Result<Score> {
        kps::prompt_similarity(&cosines(self.base, &self.prompts)?, seed)
    }

    fn base_pair_similarity(&self, seed: u64) -> Result<Option<Score>> {
        if self.base.len() < 2 {
            return Ok(None);
        }
        kps::pair_similarity(self.base, seed).map(Some)
    }

    fn collapse(&self, seed: u64) -> Result<Option<Score>> {
        if self.adapted.len() < 2 {
            return Ok(None);
        }
        kps::collapse(&self.adapted, self.base, seed).map(Some)
    }
}

/// The features of [`Evaluation::prompts`]: the baseline's, and those that it lacks measured now.
fn prompt_features(evaluation: &Evaluation<'_>, baseline: &Baseline<'_>) -> Result<Vec<Feature>> {
    let prompts = evaluation.prompts();
    let lacking: Vec<&str> = prompts.iter().copied().filter(|prompt| !baseline.prompts.contains_key(*prompt)).collect();
    let measured = text_features(&lacking, baseline.extractor)?;
    let feature = |prompt: &&str| baseline.prompts.get(*prompt).or_else(|| measured.get(*prompt)).cloned();
    Ok(prompts.iter().filter_map(feature).collect())
}

/// The features of texts by text, each measured once.
fn text_features(texts: &[&str], extractor: &dyn TextFeatures) -> Result<BTreeMap<String, Feature>> {
    let once: BTreeSet<&str> = texts.iter().copied().collect();
    let once: Vec<&str> = once.into_iter().collect();
    let features = extractor.text_features(&once)?;
    require_equal("texts and their features", once.len(), features.len())?;
    Ok(once.iter().map(ToString::to_string).zip(features).collect())
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
