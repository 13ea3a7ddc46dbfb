//! The result of an evaluation as versioned JSON.

use catelier_features::Extractor;
use catelier_prompts::PromptKind;
use serde::{Deserialize, Serialize};

use crate::content::Facet;
use crate::error::{Error, Result};
use crate::kps::Group;
use crate::metrics::Metric;
use crate::scaled::Scaled;
use crate::score::Score;

/// The value of `format` in every score file.
pub const FORMAT: &str = "catelier-scores";

/// The newest version of the format; it rises when the meaning of a field changes.
pub const VERSION: u32 = 2;

/// All scores of one adapter, with the facts needed to judge or repeat them.
///
/// The definitions are in [`crate::kps`] and [`crate::content`]. A score that could not be computed, for lack of references or
/// of images with the trigger, is `null` in JSON. Version 1 had neither `style`, `content` nor `preservation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Always [`FORMAT`].
    pub format: String,
    /// At most [`VERSION`].
    pub version: u32,
    /// How near images with the trigger come to the artist: `raw` is their similarity to the references by a tower that sees
    /// style, the floor that of the base's images, the ceiling that of the references among themselves.
    #[serde(default)]
    pub style: Option<Scaled>,
    /// Whether images with the trigger show what was asked for: `raw` is the share of the prompts' facets that is found, the
    /// floor that of a random choice, the ceiling that of the base's images, or of the artist's own where they show less.
    #[serde(default)]
    pub content: Option<Scaled>,
    /// How much images without the trigger stayed as the base draws them: `raw` is `kps_no_token`, the floor
    /// `base_pair_similarity`, the ceiling 1.
    #[serde(default)]
    pub preservation: Option<Scaled>,
    /// Harmonic mean of `style`, `content` and `preservation`.
    pub kps_joint: Option<Score>,
    /// The same for adapted images without the trigger; the ceiling is that of the base's images.
    #[serde(default)]
    pub content_no_token: Option<Scaled>,
    /// The share of images with the trigger that are nearer to the artist than to every other artist, where others were given.
    #[serde(default)]
    pub artist_found: Option<Score>,
    /// The other artist to whom images with the trigger come nearest.
    #[serde(default)]
    pub nearest_other: Option<NearestOther>,
    /// Similarity of adapted to base images without the trigger.
    pub kps_no_token: Score,
    /// Similarity of images with the trigger to the references (CLIP-I).
    pub identity: Option<Score>,
    /// Similarity of adapted images, with and without the trigger, to their prompts (CLIP-T).
    pub prompt_similarity: Score,
    /// Similarity of base images to the references, which an adapter has to exceed.
    pub base_identity: Option<Score>,
    /// Similarity of two different base images: the `kps_no_token` of an adapter that keeps nothing.
    pub base_pair_similarity: Option<Score>,
    /// Similarity of base images to their prompts, for comparison.
    pub base_prompt_similarity: Score,
    /// Loss of variety among images without the trigger; positive is a loss.
    pub class_collapse: Option<Score>,
    /// In how many images each facet of the prompts is found.
    #[serde(default)]
    pub facets: Vec<Facet>,
    /// `kps_no_token` by kind of prompt, the largest drop first.
    pub kinds: Vec<Group>,
    /// `kps_no_token` by class, the largest drop first.
    pub classes: Vec<Group>,
    /// Each image without the trigger, in the order given.
    #[serde(rename = "pictures")]
    pub images: Vec<ImageScore>,
    /// Number of scored images of each sort.
    pub counts: Counts,
    /// The seeds of the start noise, each once, in order.
    pub seeds: Vec<u64>,
    /// The seed of the bootstrap.
    pub bootstrap_seed: u64,
    /// The extractor of the features.
    pub extractor: Extractor,
    /// The extractor of the features behind `style`, where it is another one.
    #[serde(default)]
    pub style_extractor: Option<Extractor>,
    /// How the images were generated, as given by the caller.
    pub generation: Generation,
}

/// An artist whose images were given for comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NearestOther {
    /// The artist's name.
    pub name: String,
    /// Similarity of images with the trigger to this artist's, by the features behind `style`.
    pub similarity: Score,
}

/// One image without the trigger, compared with the base's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageScore {
    /// Its prompt.
    pub prompt: String,
    /// Its kind of prompt.
    pub kind: PromptKind,
    /// Its class, where it has one.
    pub class: Option<String>,
    /// Its seed.
    pub seed: u64,
    /// `sim(adapted, base)`, in [0, 1].
    pub similarity: f64,
}

/// Number of scored images of each sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Pairs of base and adapted image without the trigger.
    pub without_trigger: usize,
    /// Adapted images with the trigger.
    pub with_trigger: usize,
    /// The artist's images.
    pub references: usize,
}

/// How the images were generated, as given by the caller.
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
    /// Where guidance started from: `empty`, `trigger` or the trigger's share; empty in files that do not say.
    #[serde(default)]
    pub guidance_from: String,
    /// The part of the steps in which guidance acted: `0-1`; empty in files that do not say.
    #[serde(default)]
    pub guidance_range: String,
    /// Width of the images in pixels.
    pub width: u32,
    /// Height of the images in pixels.
    pub height: u32,
}

impl Generation {
    /// Sampler, steps and guidance in one line.
    #[must_use]
    pub fn sampling(&self) -> String {
        format!("{}, {} steps, {}", self.sampler, self.steps, self.guidance_in_words())
    }

    /// Strength of guidance, and its start and range where they are not the usual ones: `guidance 2 from trigger`.
    #[must_use]
    pub fn guidance_in_words(&self) -> String {
        let unusual = |value: &str, usual| !value.is_empty() && value != usual;
        let mut words = format!("guidance {}", self.guidance);
        if unusual(&self.guidance_from, "empty") {
            words += &format!(" from {}", self.guidance_from);
        }
        if unusual(&self.guidance_range, "0-1") {
            words += &format!(" in {}", self.guidance_range);
        }
        words
    }
}

impl Scores {
    /// The class with the largest drop, if images have classes.
    #[must_use]
    pub fn worst_class(&self) -> Option<&Group> {
        self.classes.first()
    }

    /// A score by its name in [`METRICS`](crate::METRICS); `None` if it could not be computed.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Score> {
        Metric::named(name)?.of(self)
    }

    /// The scores as indented JSON with a final line break.
    #[must_use]
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("a struct of strings and numbers always serialises");
        json + "\n"
    }

    /// Reads scores back, refusing other formats and newer versions. In version 1 `kps_joint` meant something else, and is left
    /// out.
    ///
    /// # Errors
    /// When the text is not JSON, names another format or a newer version, or lacks a field.
    pub fn from_json(text: &str) -> Result<Self> {
        let parse = |source| Error::ScoreFile { source };
        let head: Head = serde_json::from_str(text).map_err(parse)?;
        if head.format != FORMAT || head.version > VERSION {
            return Err(Error::ScoreFormat {
                expected: FORMAT,
                version: VERSION,
                found: head.format,
                found_version: head.version,
            });
        }
        let scores: Self = serde_json::from_str(text).map_err(parse)?;
        Ok(if head.version < 2 { Self { kps_joint: None, ..scores } } else { scores })
    }
}

/// The two fields that decide whether the file can be read.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}
