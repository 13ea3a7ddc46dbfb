//! The list of scores with their names in files, commands and pages.

use crate::scaled::Scaled;
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

/// The ends of a scaled score in words, and where its values are.
#[derive(Debug)]
pub struct Ends {
    /// What counts as 0.
    pub floor: &'static str,
    /// What counts as 1.
    pub ceiling: &'static str,
    of: fn(&Scores) -> Option<Scaled>,
}

impl Ends {
    /// The score with its raw value and the ends of the scale.
    #[must_use]
    pub fn of(&self, scores: &Scores) -> Option<Scaled> {
        (self.of)(scores)
    }
}

/// One row of the list of scores.
#[derive(Debug)]
#[non_exhaustive]
pub struct Metric {
    /// Its name in files and on the command line.
    pub name: &'static str,
    /// Its name in plain words.
    pub title: &'static str,
    /// Its meaning in one sentence; formulas are in [`crate::kps`] and [`crate::content`].
    pub definition: &'static str,
    /// Whether higher or lower values are better.
    pub better: Better,
    /// Whether its range is 0 to 1, so that it can be drawn on a strip.
    pub unit_range: bool,
    /// The images or texts that an evaluation must contain for this score.
    pub needs: &'static str,
    /// What counts as 0 and as 1, where the score is scaled.
    pub scale: Option<Ends>,
    value: fn(&Scores) -> Option<Score>,
}

impl Metric {
    /// The row with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        METRICS.iter().find(|metric| metric.name == name)
    }

    /// The scores that matter most: style, content, preservation, and all three together.
    #[must_use]
    pub fn headline() -> &'static [Self] {
        &METRICS[..4]
    }

    /// The score of this row; `None` if the evaluation lacked what it [needs](Self::needs).
    #[must_use]
    pub fn of(&self, scores: &Scores) -> Option<Score> {
        (self.value)(scores)
    }
}

/// All scores, the most informative first.
pub static METRICS: [Metric; 9] = [
    Metric {
        name: "style",
        title: "Style with the trigger",
        definition: "How near images with the trigger word come to the artist's hand.",
        better: Better::Higher,
        unit_range: true,
        needs: "two references and images with the trigger",
        scale: Some(Ends { floor: "the base alone", ceiling: "the artist's own images", of: |scores| scores.style }),
        value: |scores| scores.style.map(|scaled| scaled.score),
    },
    Metric {
        name: "content",
        title: "Content with the trigger",
        definition: "Whether what the prompt asked for can be found in images with the trigger word.",
        better: Better::Higher,
        unit_range: true,
        needs: "images with the trigger",
        scale: Some(Ends {
            floor: "chance",
            ceiling: "the base alone, or the artist's own images if they show less",
            of: |scores| scores.content,
        }),
        value: |scores| scores.content.map(|scaled| scaled.score),
    },
    Metric {
        name: "preservation",
        title: "Kept without the trigger",
        definition: "How much an image stays as it was when nobody asked for the style.",
        better: Better::Higher,
        unit_range: true,
        needs: "two pairs of images without the trigger",
        scale: Some(Ends {
            floor: "two different images of the base",
            ceiling: "unchanged",
            of: |scores| scores.preservation,
        }),
        value: |scores| scores.preservation.map(|scaled| scaled.score),
    },
    Metric {
        name: "kps_joint",
        title: "All three together",
        definition: "High only where the style was learned, what was asked for is there, and everything else was kept.",
        better: Better::Higher,
        unit_range: true,
        needs: "two references and images with the trigger",
        scale: None,
        value: |scores| scores.kps_joint,
    },
    Metric {
        name: "content_no_token",
        title: "Content without the trigger",
        definition: "Whether what the prompt asked for can be found when nobody asked for the style.",
        better: Better::Higher,
        unit_range: true,
        needs: "a pair of images without the trigger",
        scale: Some(Ends { floor: "chance", ceiling: "the base alone", of: |scores| scores.content_no_token }),
        value: |scores| scores.content_no_token.map(|scaled| scaled.score),
    },
    Metric {
        name: "kps_no_token",
        title: "Knowledge preserved, unscaled",
        definition: "The similarity of an image with and without the adapter when nobody asked for the style; 1 is unchanged.",
        better: Better::Higher,
        unit_range: true,
        needs: "a pair of images without the trigger",
        scale: None,
        value: |scores| Some(scores.kps_no_token),
    },
    Metric {
        name: "identity",
        title: "CLIP-I",
        definition: "The similarity of images with the trigger word to the artist's own, content included; 1 is the same.",
        better: Better::Higher,
        unit_range: true,
        needs: "references and images with the trigger",
        scale: None,
        value: |scores| scores.identity,
    },
    Metric {
        name: "prompt_similarity",
        title: "CLIP-T",
        definition: "How well images agree with their words; its useful range depends on the model that measures, so compare it with the base only.",
        better: Better::Higher,
        unit_range: false,
        needs: "a pair of images without the trigger",
        scale: None,
        value: |scores| Some(scores.prompt_similarity),
    },
    Metric {
        name: "class_collapse",
        title: "Lost variety",
        definition: "How much more alike the images have become among themselves; 0 is no change, more is worse.",
        better: Better::Lower,
        unit_range: false,
        needs: "two pairs of images without the trigger",
        scale: None,
        value: |scores| scores.class_collapse,
    },
];
