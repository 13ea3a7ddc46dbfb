//! The page of one adapter's evaluation.

use catelier_features::Extractor;
use catelier_pages::chart::{Tone, strip};
use catelier_pages::embedded_image::{EmbeddedImage, grid};
use catelier_pages::{Estimate, number, page};
use maud::{Markup, html};

use super::findings;
use super::score_table::cards;
use crate::content::Facet;
use crate::error::{Error, Result};
use crate::kps::Group;
use crate::protocol::{Evaluation, ImagePair, kind_name};
use crate::scores::Scores;

/// Default number of the most changed pairs, of images with the trigger, and of references that a page shows. Each
/// image is embedded in full, so the limit bounds the page's size.
const SHOWN: usize = 24;

/// One adapter's scores, its most changed images, and how they were measured.
#[derive(Debug, Clone)]
pub struct EvaluationPage<'a> {
    /// The page's title, for instance the adapter's name.
    pub title: &'a str,
    /// The images that were measured.
    pub evaluation: &'a Evaluation<'a>,
    /// The scores of these images.
    pub scores: &'a Scores,
    /// A remark that must not be overlooked, for instance [`super::EMBEDDED_BASE_NOTICE`].
    pub notice: Option<&'a str>,
    /// Largest number of images of each sort on the page; all images are scored.
    pub shown: usize,
}

impl<'a> EvaluationPage<'a> {
    /// A page without notice that shows at most 24 images of a sort.
    #[must_use]
    pub fn new(title: &'a str, evaluation: &'a Evaluation<'a>, scores: &'a Scores) -> Self {
        Self { title, evaluation, scores, notice: None, shown: SHOWN }
    }

    /// The page as one HTML file.
    ///
    /// # Errors
    /// When the scores do not belong to these images, or an image cannot be encoded.
    pub fn html(&self) -> Result<String> {
        let summary = findings::summary(self.scores);
        let body = html! {
            (page::opening("Evaluation", self.title, &summary))
            @if let Some(notice) = self.notice { (page::notice(notice)) }
            (page::section("Scores", "Each score with the interval in which it would lie if other images of the same sort had been drawn.", &cards(self.scores)))
            (self.pairs()?)
            (self.with_trigger()?)
            (self.facets())
            (self.groups())
            (page::section("How this was measured", "", &self.method()))
        };
        Ok(page::document(self.title, &summary, &body))
    }

    /// The pairs with their similarities, the most changed first.
    fn by_damage(&self) -> Result<Vec<(&ImagePair<'a>, f64)>> {
        let (pairs, scores) = (&self.evaluation.without_trigger, &self.scores.images);
        if pairs.len() != scores.len() {
            return Err(Error::LengthMismatch {
                what: "images and their scores",
                expected: pairs.len(),
                found: scores.len(),
            });
        }
        let similarities = scores.iter().map(|score| score.similarity);
        let mut paired: Vec<_> = pairs.iter().zip(similarities).collect();
        paired.sort_by(|left, right| left.1.total_cmp(&right.1));
        Ok(paired)
    }

    fn pairs(&self) -> Result<Markup> {
        let pairs = self.by_damage()?;
        let shown = pairs.iter().take(self.shown);
        let cells = shown.map(|(pair, kept)| pair_cell(pair, *kept)).collect::<Result<Vec<_>>>()?;
        let body = html! {
            div.pairs { @for cell in &cells { (cell) } }
            (left_out(cells.len(), pairs.len()))
        };
        Ok(page::section(
            "Without the trigger, most changed first",
            "Left what the base draws, right the same prompt and seed with the adapter. Nobody asked for the style here, so the two should look alike.",
            &body,
        ))
    }

    fn with_trigger(&self) -> Result<Markup> {
        let triggered = &self.evaluation.with_trigger;
        if triggered.is_empty() {
            return Ok(html! {});
        }
        let adapted = triggered.iter().take(self.shown).map(|one| {
            let alt = format!("With the trigger: {}, seed {}", one.prompt, one.seed);
            Ok((EmbeddedImage::new(one.adapted, alt)?, one.prompt.as_str()))
        });
        let adapted = adapted.collect::<Result<Vec<_>>>()?;
        let references =
            self.evaluation.references.iter().map(|reference| &reference.image).take(self.shown).enumerate();
        let references = references
            .map(|(index, image)| Ok((EmbeddedImage::new(image, format!("Reference {}", index + 1))?, "")))
            .collect::<Result<Vec<_>>>()?;
        let body = html! {
            @if !references.is_empty() {
                h3 { "References" }
                (grid(&references))
                (left_out(references.len(), self.evaluation.references.len()))
                h3 { "The adapter" }
            }
            (grid(&adapted))
            (left_out(adapted.len(), triggered.len()))
        };
        Ok(page::section(
            "With the trigger",
            "What the adapter draws when it is asked for the style, to be held against the references.",
            &body,
        ))
    }

    /// What was found of the prompts, and the nearest other artist.
    fn facets(&self) -> Markup {
        let scores = self.scores;
        let body = html! {
            (facet_table(&scores.facets))
            @if let (Some(found), Some(other)) = (scores.artist_found, &scores.nearest_other) {
                p {
                    (number::two_decimals(found.mean)) " of the images with the trigger are nearer to the artist than to every other artist given; the nearest other is "
                    b { (other.name) } ", with a similarity of " (number::two_decimals(other.similarity.mean)) "."
                }
            }
        };
        html! {
            @if !scores.facets.is_empty() {
                (page::section("Is it what was asked for?", "The share of images in which CLIP finds what the prompt named, when it chooses among other texts.", &body))
            }
        }
    }

    fn groups(&self) -> Markup {
        let tables = [("Class", &self.scores.classes), ("Kind of prompt", &self.scores.kinds)];
        let tables = tables.into_iter().filter(|(_, groups)| !groups.is_empty());
        let body = html! {
            div.columns { @for (title, groups) in tables { (group_table(title, groups)) } }
        };
        page::section(
            "Who lost most",
            "An even average can hide one ruined class. Kept, by class and by kind of prompt, without the trigger.",
            &body,
        )
    }

    fn method(&self) -> Markup {
        let scores = self.scores;
        let generation = &scores.generation;
        let counts = &scores.counts;
        let mut facts = vec![
            ("Base", generation.base.clone()),
            ("Sampling", generation.sampling()),
            ("Size", format!("{} x {} pixels", generation.width, generation.height)),
            (
                "Images",
                format!(
                    "{} pairs without the trigger, {} with it, {}, {}",
                    counts.without_trigger,
                    counts.with_trigger,
                    number::count(counts.references, "reference", "references"),
                    number::count(scores.seeds.len(), "seed", "seeds")
                ),
            ),
            ("Measured with", measured_with(&scores.extractor)),
            ("Style measured with", measured_with(scores.style_extractor.as_ref().unwrap_or(&scores.extractor))),
            ("Intervals", format!("95 %, bootstrap over images with seed {}", scores.bootstrap_seed)),
        ];
        if let Some(adapter) = &generation.adapter {
            facts.insert(1, ("Adapter", adapter.clone()));
        }
        if let Some(trigger) = &generation.trigger {
            facts.insert(1, ("Trigger", trigger.clone()));
        }
        html! { (definitions()) (page::facts(&facts)) }
    }
}

/// The extractor's name and the start of its hash, which the score file holds whole.
pub(super) fn measured_with(extractor: &Extractor) -> String {
    let start: String = extractor.sha256.chars().take(12).collect();
    format!("{}, SHA-256 {start}\u{2026}", extractor.name)
}

fn pair_cell(pair: &ImagePair<'_>, kept: f64) -> Result<Markup> {
    let base = EmbeddedImage::new(pair.base, format!("The base: {}, seed {}", pair.prompt, pair.seed))?;
    let adapted = EmbeddedImage::new(pair.adapted, format!("With the adapter: {}, seed {}", pair.prompt, pair.seed))?;
    let exact = Estimate { value: kept, low: 0.0, high: kept };
    Ok(html! {
        figure.pair {
            div.side-by-side { (base) (adapted) }
            (strip(Tone::Series(0), exact, None))
            figcaption {
                span.prompt { (pair.prompt) }
                span.detail { b { (number::two_decimals(kept)) } " kept \u{b7} " (kind_name(pair.kind)) " \u{b7} seed " (pair.seed) }
            }
        }
    })
}

fn facet_table(facets: &[Facet]) -> Markup {
    html! {
        table.groups {
            thead { tr { th scope="col" { "Asked for" } th scope="col" { "Base" } th scope="col" { "Without the trigger" } th scope="col" { "With the trigger" } th scope="col" { "The artist" } } }
            tbody {
                @for facet in facets {
                    tr {
                        th scope="row" { (facet.name) }
                        td { (number::two_decimals(facet.base)) }
                        td { (number::two_decimals(facet.without_trigger)) }
                        @for share in [facet.with_trigger, facet.references] {
                            td { (share.map_or_else(|| "-".to_owned(), number::two_decimals)) }
                        }
                    }
                }
            }
        }
    }
}

fn group_table(title: &str, groups: &[Group]) -> Markup {
    html! {
        table.groups {
            thead { tr { th scope="col" { (title) } th scope="col" { "Kept" } th scope="col" { "Worst image" } } }
            tbody {
                @for group in groups {
                    tr {
                        th scope="row" { (group.name) (strip(Tone::Series(0), group.kept.into(), None)) }
                        td { span.value { (number::two_decimals(group.kept.mean)) } span.interval { (number::interval(group.kept.into())) } }
                        td { (number::two_decimals(group.worst)) }
                    }
                }
            }
        }
    }
}

/// The definitions every page with scores repeats.
pub(super) fn definitions() -> Markup {
    html! {
        div.prose {
            p {
                "The similarity of two images is (cosine + 1) / 2 of their features, so 1 is the same direction, and even unrelated images seldom fall below 0.5. The three scores in front are therefore scaled between the two values that stand beside them. "
                "\u{201c}Style\u{201d} is the mean similarity of images with the trigger to the references, by features of a model that sees style; "
                "\u{201c}content\u{201d} is the share of what the prompts asked for that CLIP finds in the images, when it chooses among other texts; "
                "\u{201c}kept\u{201d} is the Knowledge Preservation Score " code { "kps_no_token" } ", the harmonic mean of the similarity of adapted and base image over prompts without the trigger. "
                "\u{201c}All three together\u{201d} (" code { "kps_joint" } ") is their harmonic mean, which is low when any one is."
            }
            p {
                "These are the toolkit's own definitions, after the idea of the Knowledge Preservation Score of the CAT paper (arXiv 2404.07554). The paper's exact formula could not be read, so the numbers do not compare with its table."
            }
        }
    }
}

fn left_out(shown: usize, all: usize) -> Markup {
    html! {
        @if shown < all {
            p.small { "Shown are " (shown) " of " (all) "; all are scored." }
        }
    }
}
