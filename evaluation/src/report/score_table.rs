//! Scores with their intervals and what each means.

use maud::{Markup, html};

use super::chart::Tone;
use super::number;
use crate::metrics::{Better, METRICS, Metric};
use crate::score::Score;
use crate::scores::Scores;

/// Which of two adapters a score favours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Cat,
    Lora,
    /// The intervals overlap: the difference may be chance.
    TooClose,
}

impl Verdict {
    pub(super) fn between(cat: &Score, lora: &Score, better: Better) -> Self {
        let neither_loses = better == Better::Lower && cat.low <= 0.0 && lora.low <= 0.0;
        let cat_is_higher = cat.mean > lora.mean;
        match better {
            _ if cat.overlaps(lora) || neither_loses => Self::TooClose,
            Better::Higher if cat_is_higher => Self::Cat,
            Better::Lower if !cat_is_higher => Self::Cat,
            _ => Self::Lora,
        }
    }
}

/// What a score has to be held against.
pub(super) struct Reference {
    /// Whose score it is, as the start of a sentence.
    pub(super) whose: &'static str,
    pub(super) score: Score,
}

impl Reference {
    /// What the untouched base tells about a score, where it tells something.
    pub(super) fn of(metric: &Metric, scores: &Scores) -> Option<Self> {
        let (whose, score) = match metric.name {
            "kps_no_token" => ("Two different pictures of the base", scores.base_pair_similarity),
            "identity" => ("The base alone", scores.base_identity),
            "prompt_similarity" => ("The base alone", Some(scores.base_prompt_similarity)),
            _ => return None,
        };
        score.map(|score| Self { whose, score })
    }
}

/// A score on a line from 0 to 1: a bar for the interval, a mark for the score, and a thin line for
/// what it has to be held against.
pub(super) fn strip(tone: Tone, score: &Score, reference: Option<&Reference>) -> Markup {
    let percent = |value: f64| format!("{:.1}%", 100.0 * value.clamp(0.0, 1.0));
    let (low, mean, high) = (percent(score.low), percent(score.mean), percent(score.high));
    html! {
        span class=(format!("strip {}", tone.class())) aria-hidden="true"
            style=(format!("--low:{low};--mean:{mean};--high:{high}")) {
            @if let Some(reference) = reference { u style=(format!("left:{}", percent(reference.score.mean))) {} }
            i {}
            b {}
        }
    }
}

/// One adapter's scores as cards.
pub(super) fn cards(scores: &Scores) -> Markup {
    html! {
        div.cards {
            @for metric in &METRICS {
                @if let Some(score) = metric.of(scores) {
                    (card(metric, &score, scores))
                }
            }
        }
    }
}

fn card(metric: &Metric, score: &Score, scores: &Scores) -> Markup {
    let reference = Reference::of(metric, scores);
    html! {
        article.card {
            h3 { (metric.title) }
            p.figure { (number::score(score.mean)) }
            @if metric.unit_range {
                (strip(Tone::Adapter, score, reference.as_ref()))
            }
            p.interval { (number::interval(score)) ", " (number::count(score.n, "picture", "pictures")) }
            p.meaning { (metric.definition) }
            @if let Some(Reference { whose, score }) = reference {
                p.base-value { (whose) ": " (number::score(score.mean)) }
            }
            p.key { code { (metric.name) } }
        }
    }
}

/// Two adapters side by side, the better one marked.
pub(super) fn comparison(cat: &Scores, lora: &Scores) -> Markup {
    html! {
        table.comparison {
            thead {
                tr { th scope="col" { "Score" } th scope="col" { "CAT" } th scope="col" { "Plain LoRA" } }
            }
            tbody {
                @for metric in &METRICS {
                    @if let (Some(left), Some(right)) = (metric.of(cat), metric.of(lora)) {
                        (comparison_row(metric, &left, &right, Reference::of(metric, cat)))
                    }
                }
            }
        }
        p.small { span.badge { "better" } " marks the better score where the intervals do not overlap. Where neither is marked, the difference may be chance. Small figures are 95 % bootstrap intervals." }
    }
}

fn comparison_row(metric: &Metric, cat: &Score, lora: &Score, reference: Option<Reference>) -> Markup {
    let verdict = Verdict::between(cat, lora, metric.better);
    html! {
        tr {
            th scope="row" {
                span.title { (metric.title) }
                span.meaning { (metric.definition) }
                @if let Some(Reference { whose, score }) = reference {
                    span.meaning { (whose) ": " (number::score(score.mean)) "." }
                }
            }
            (comparison_cell("CAT", cat, verdict == Verdict::Cat))
            (comparison_cell("Plain LoRA", lora, verdict == Verdict::Lora))
        }
    }
}

fn comparison_cell(name: &str, score: &Score, better: bool) -> Markup {
    html! {
        td.better[better] {
            span.contender aria-hidden="true" { (name) }
            span.value { (number::score(score.mean)) }
            span.interval { (number::interval(score)) }
            @if better { span.badge { "better" } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(low: f64, mean: f64, high: f64) -> Score {
        Score { mean, low, high, n: 10 }
    }

    #[test]
    fn the_better_score_is_the_higher_one_or_for_losses_the_lower_one() {
        let (high, low) = (score(0.9, 0.95, 1.0), score(0.7, 0.75, 0.8));
        assert_eq!(Verdict::between(&high, &low, Better::Higher), Verdict::Cat);
        assert_eq!(Verdict::between(&low, &high, Better::Higher), Verdict::Lora);
        assert_eq!(Verdict::between(&high, &low, Better::Lower), Verdict::Lora);
        assert_eq!(Verdict::between(&low, &high, Better::Lower), Verdict::Cat);
    }

    #[test]
    fn where_neither_lost_variety_none_is_better() {
        let (gained, same) = (score(-0.05, -0.04, -0.03), score(-0.01, 0.0, 0.01));
        assert_eq!(Verdict::between(&gained, &same, Better::Lower), Verdict::TooClose);
    }

    #[test]
    fn overlapping_intervals_have_no_winner() {
        let (left, right) = (score(0.80, 0.9, 0.95), score(0.7, 0.75, 0.81));
        assert_eq!(Verdict::between(&left, &right, Better::Higher), Verdict::TooClose);
        assert!(!comparison_row(&METRICS[0], &left, &right, None).into_string().contains("badge"));
    }
}
