//! The Knowledge Preservation Score and its companions, as pure functions of similarities.
//!
//! # These definitions are the toolkit's own
//!
//! The CAT paper (arXiv 2404.07554) introduces a Knowledge Preservation Score built from CLIP
//! features and aggregated with a harmonic mean. Its exact formulas (KPS1, KPS2) could not be read
//! and its authors' code contains none, so the scores here carry other names and **do not compare
//! with the paper's table**.
//!
//! With `sim(a, b) = (cos(CLIP(a), CLIP(b)) + 1) / 2` in [0, 1], `base(p, s)` and `adapted(p, s)`
//! the images of prompt `p` and seed `s` without and with the adapter:
//!
//! | name | definition | range |
//! |---|---|---|
//! | [`kps_no_token`] | harmonic mean over prompts **without** the trigger and seeds of `sim(adapted, base)` | 0 to 1 |
//! | [`identity`] | mean over prompts **with** the trigger, seeds and references of `sim(adapted, reference)` | 0 to 1 |
//! | [`style`] | the same mean with features of a tower that sees style, where there is one | 0 to 1 |
//! | [`kps_joint`] | harmonic mean of style, content and preservation, each [scaled](crate::scaled) | 0 to 1 |
//! | [`prompt_similarity`] | mean cosine of an image and its prompt's text | -1 to 1 |
//! | [`pair_similarity`] | mean similarity of two different images of a list | 0 to 1 |
//! | [`collapse`] | mean similarity of two adapted images, minus the mean similarity of two base images | -1 to 1 |
//!
//! An adapter that does nothing has `kps_no_token` 1, and one that draws smudges in the artist's colours has a high
//! `identity`: read them together, or `kps_joint`, in which [content](crate::content) counts too. The harmonic mean is never
//! above the arithmetic mean, so a few badly changed images weigh more.

mod groups;

pub use groups::{Group, by_group};

use crate::error::Result;
use crate::score::{SMALLEST_SIMILARITY, Score, mean, require, require_range};
use crate::similarity::similarity;

/// Harmonic mean of the similarities of adapted to base images, over prompts without the trigger and seeds: 1 if the
/// adapter changes nothing without its trigger.
///
/// `seed` fixes the bootstrap.
///
/// # Errors
/// When there is no similarity, or one lies outside [0, 1].
pub fn kps_no_token(similarities: &[f64], seed: u64) -> Result<Score> {
    require_range("kps_no_token", similarities, (0.0, 1.0))?;
    Score::harmonic("kps_no_token", similarities, seed)
}

/// Identity similarity (CAT's IS, taken over images with the trigger): the similarity of adapted images to the
/// references.
///
/// `by_image[i]` holds the similarity of image `i` to each reference. References are averaged
/// within an image first, so the interval counts images and not pairs.
///
/// # Errors
/// When there is no image, an image without references, or a similarity outside [0, 1].
pub fn identity(by_image: &[Vec<f64>], seed: u64) -> Result<Score> {
    near("identity", by_image, seed)
}

/// Similarity to the references by a tower that sees style: computed as [`identity`].
///
/// # Errors
/// As [`identity`].
pub fn style(by_image: &[Vec<f64>], seed: u64) -> Result<Score> {
    near("style", by_image, seed)
}

fn near(score: &'static str, by_image: &[Vec<f64>], seed: u64) -> Result<Score> {
    let mut means = Vec::with_capacity(by_image.len());
    for similarities in by_image {
        require(score, "references", 1, similarities.len())?;
        require_range(score, similarities, (0.0, 1.0))?;
        means.push(mean(similarities));
    }
    Score::arithmetic(score, &means, seed)
}

/// Harmonic mean of style, content and preservation, each on the scale from its floor to its ceiling: high only when the style
/// was learned, what was asked for is in the image, *and* the rest was kept; low when any one is.
///
/// The ends of its interval are the harmonic means of the lower and of the upper ends, which is wider than the
/// samples alone would justify. `n` counts the images of all three.
#[must_use]
pub fn kps_joint(style: &Score, content: &Score, preservation: &Score) -> Score {
    let parts = [style, content, preservation];
    let of = |value: fn(&Score) -> f64| harmonic(parts.map(value));
    Score {
        mean: of(|score| score.mean),
        low: of(|score| score.low),
        high: of(|score| score.high),
        n: parts.iter().map(|score| score.n).sum(),
    }
}

/// Prompt similarity (CAT's PS): mean raw cosine of images and the texts of their prompts.
///
/// Small values are normal (0.2 to 0.35 for CLIP ViT-B/32), and small differences mean little.
///
/// # Errors
/// When there is no cosine, or one lies outside [-1, 1].
pub fn prompt_similarity(cosines: &[f64], seed: u64) -> Result<Score> {
    require_range("prompt_similarity", cosines, (-1.0, 1.0))?;
    Score::arithmetic("prompt_similarity", cosines, seed)
}

/// Similarity of the images of a list to each other: the mean [`similarity`] of all pairs of different images.
///
/// For base images this is the floor: a [`kps_no_token`] below it means that nothing was kept.
/// The interval draws images, not pairs.
///
/// # Errors
/// When there are fewer than two images or a feature has no direction.
pub fn pair_similarity<F: AsRef<[f32]>>(images: &[F], seed: u64) -> Result<Score> {
    require("pair_similarity", "images", 2, images.len())?;
    Score::arithmetic("pair_similarity", &mean_similarity_to_others(images)?, seed)
}

/// Class collapse: the mean similarity of adapted images to each other, minus the mean similarity of base images. A
/// positive value is a loss of variety.
///
/// The lists are aligned: `adapted[i]` and `base[i]` come from one prompt and seed. The mean runs
/// over all pairs of different images; the interval draws images, not pairs.
///
/// # Errors
/// When there are fewer than two images, the lists differ in length, or a feature has no
/// direction.
pub fn collapse<F: AsRef<[f32]>>(adapted: &[F], base: &[F], seed: u64) -> Result<Score> {
    require("class_collapse", "images", 2, adapted.len())?;
    let adapted = mean_similarity_to_others(adapted)?;
    let base = mean_similarity_to_others(base)?;
    if adapted.len() != base.len() {
        return Err(crate::Error::LengthMismatch {
            what: "adapted and base images",
            expected: adapted.len(),
            found: base.len(),
        });
    }
    let differences: Vec<f64> = adapted.iter().zip(&base).map(|(a, b)| a - b).collect();
    Score::arithmetic("class_collapse", &differences, seed)
}

/// For each feature, its mean similarity to all others.
fn mean_similarity_to_others<F: AsRef<[f32]>>(features: &[F]) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; features.len()];
    for (i, left) in features.iter().enumerate() {
        for (j, right) in features.iter().enumerate().skip(i + 1) {
            let alike = similarity(left.as_ref(), right.as_ref())?;
            sums[i] += alike;
            sums[j] += alike;
        }
    }
    let others = features.len().saturating_sub(1).max(1) as f64;
    Ok(sums.into_iter().map(|sum| sum / others).collect())
}

fn harmonic(values: [f64; 3]) -> f64 {
    values.len() as f64 / values.iter().map(|value| value.max(SMALLEST_SIMILARITY).recip()).sum::<f64>()
}

#[cfg(test)]
mod tests;
