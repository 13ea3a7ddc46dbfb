//! The list of scores with their names in files, commands and pages.

use crate::score::Score;
use crate::scores::Scores;

/// Whether higher or lower values of a score are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Higher is better.
    Higher,
    /// Lower is better.
    Lower,
}

/// One row of the list of scores.
#[derive(Debug)]
#[non_exhaustive]
pub struct Metric {
    /// Its name in files and on the command line.
    pub name: &'static str,
    /// Its name in plain words.
    pub title: &'static str,
    /// Its meaning in one sentence; the formula is in [`crate::kps`].
    pub definition: &'static str,
    /// Whether higher or lower values are better.
    pub better: Better,
    /// Whether its range is 0 to 1, so that it can be drawn on a strip.
    pub unit_range: bool,
    /// The images or texts that an evaluation must contain for this score.
    pub needs: &'static str,
    value: fn(&Scores) -> Option<Score>,
}

impl Metric {
    /// The row with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        METRICS.iter().find(|metric| metric.name == name)
    }

    /// The score of this row; `None` if the evaluation lacked what it [needs](Self::needs).
    #[must_use]
    pub fn of(&self, scores: &Scores) -> Option<Score> {
        (self.value)(scores)
    }
}

/// All scores, the most informative first.
pub static METRICS: [Metric; 5] = [
    Metric {
        name: "kps_no_token",
        title: "Kept without the trigger",
        definition: "How alike an image is with and without the adapter when nobody asked for the style; 1 is unchanged.",
        better: Better::Higher,
        unit_range: true,
        needs: "a pair of images without the trigger",
        value: |scores| Some(scores.kps_no_token),
    },
    Metric {
        name: "identity",
        title: "Style with the trigger",
        definition: "How near images with the trigger word come to the artist's own; 1 is the same.",
        better: Better::Higher,
        unit_range: true,
        needs: "references and images with the trigger",
        value: |scores| scores.identity,
    },
    Metric {
        name: "kps_joint",
        title: "Both together",
        definition: "High only where the style was learned and everything else was kept.",
        better: Better::Higher,
        unit_range: true,
        needs: "references and images with the trigger",
        value: |scores| scores.kps_joint,
    },
    Metric {
        name: "prompt_similarity",
        title: "Follows the prompt",
        definition: "How well images agree with their words; its useful range depends on the model that measures, so compare it with the base only.",
        better: Better::Higher,
        unit_range: false,
        needs: "a pair of images without the trigger",
        value: |scores| Some(scores.prompt_similarity),
    },
    Metric {
        name: "class_collapse",
        title: "Lost variety",
        definition: "How much more alike the images have become among themselves; 0 is no change, more is worse.",
        better: Better::Lower,
        unit_range: false,
        needs: "two pairs of images without the trigger",
        value: |scores| scores.class_collapse,
    },
];
