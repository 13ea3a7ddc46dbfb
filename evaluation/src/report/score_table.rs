//! Scores with their intervals and definitions.

use catelier_pages::chart::{Tone, strip};
use catelier_pages::number;
use maud::{Markup, html};

use super::Run;
use crate::metrics::{Better, METRICS, Metric};
use crate::scaled::Scaled;
use crate::score::Score;
use crate::scores::Scores;

/// Which of two scores is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    First,
    Second,
    /// The intervals overlap: the difference may be chance.
    TooClose,
}

impl Verdict {
    pub(super) fn between(first: &Score, second: &Score, better: Better) -> Self {
        let neither_loses = better == Better::Lower && first.low <= 0.0 && second.low <= 0.0;
        let first_is_higher = first.mean > second.mean;
        match better {
            _ if first.overlaps(second) || neither_loses => Self::TooClose,
            Better::Higher if first_is_higher => Self::First,
            Better::Lower if !first_is_higher => Self::First,
            _ => Self::Second,
        }
    }
}

/// A score of the base, which an adapter's score is compared with.
pub(super) struct BaseScore {
    /// The owner of the score, as the start of a sentence.
    pub(super) whose: &'static str,
    pub(super) score: Score,
}

impl BaseScore {
    /// The score of the base without adapter, if there is one for this metric.
    pub(super) fn of(metric: &Metric, scores: &Scores) -> Option<Self> {
        let (whose, score) = match metric.name {
            "kps_no_token" => ("Two different images of the base", scores.base_pair_similarity),
            "identity" => ("The base alone", scores.base_identity),
            "prompt_similarity" => ("The base alone", Some(scores.base_prompt_similarity)),
            _ => return None,
        };
        score.map(|score| Self { whose, score })
    }
}

/// The ends of a scaled score and its raw value: `0 is chance (0.14), 1 the base alone (0.97); measured 0.91`.
pub(super) fn scale_in_words(metric: &Metric, scores: &Scores) -> Option<String> {
    let scale = metric.scale.as_ref()?;
    let Scaled { raw, floor, ceiling, .. } = scale.of(scores)?;
    let [raw, floor, ceiling] = [raw.mean, floor, ceiling].map(number::two_decimals);
    Some(format!("0 is {} ({floor}), 1 {} ({ceiling}); measured {raw}", scale.floor, scale.ceiling))
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
    let reference = BaseScore::of(metric, scores);
    html! {
        article.card {
            h3 { (metric.title) }
            p.figure { (number::two_decimals(score.mean)) }
            @if metric.unit_range {
                (strip(Tone::Series(0), (*score).into(), reference.as_ref().map(|reference| reference.score.mean)))
            }
            p.interval { (number::interval((*score).into())) ", " (number::count(score.n, "image", "images")) }
            p.meaning { (metric.definition) }
            @if let Some(BaseScore { whose, score }) = reference {
                p.base-value { (whose) ": " (number::two_decimals(score.mean)) }
            }
            @if let Some(scale) = scale_in_words(metric, scores) { p.base-value { (scale) } }
            p.key { code { (metric.name) } }
        }
    }
}

/// Runs side by side, the best one marked.
pub(super) fn comparison(runs: &[&Run<'_>]) -> Markup {
    html! {
        table.comparison {
            thead {
                tr { th scope="col" { "Score" } @for run in runs { th scope="col" { (run.title()) } } }
            }
            tbody {
                @for metric in &METRICS {
                    @if let Some(scores) = runs.iter().map(|run| metric.of(run.scores)).collect::<Option<Vec<_>>>() {
                        (comparison_row(metric, runs, &scores))
                    }
                }
            }
        }
        p.small { span.badge { "better" } " marks a score that is better than all others of its row, with intervals that do not overlap. Where none is marked, the difference may be chance. Small figures are 95 % bootstrap intervals." }
    }
}

fn comparison_row(metric: &Metric, runs: &[&Run<'_>], scores: &[Score]) -> Markup {
    let reference = runs.first().and_then(|run| BaseScore::of(metric, run.scores));
    html! {
        tr {
            th scope="row" {
                span.title { (metric.title) }
                span.meaning { (metric.definition) }
                @if let Some(BaseScore { whose, score }) = reference {
                    span.meaning { (whose) ": " (number::two_decimals(score.mean)) "." }
                }
                @if let Some(scale) = &metric.scale {
                    span.meaning { "0 is " (scale.floor) ", 1 " (scale.ceiling) "." }
                }
            }
            @for (index, (run, score)) in runs.iter().zip(scores).enumerate() {
                (comparison_cell(&run.title(), score, is_best(index, scores, metric.better)))
            }
        }
    }
}

/// Whether a score is better than every other one.
fn is_best(index: usize, scores: &[Score], better: Better) -> bool {
    let mut others = scores.iter().enumerate().filter(|(other, _)| *other != index);
    others.all(|(_, other)| Verdict::between(&scores[index], other, better) == Verdict::First)
}

fn comparison_cell(name: &str, score: &Score, better: bool) -> Markup {
    html! {
        td.better[better] {
            span.run-name aria-hidden="true" { (name) }
            span.value { (number::two_decimals(score.mean)) }
            span.interval { (number::interval((*score).into())) }
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
        assert_eq!(Verdict::between(&high, &low, Better::Higher), Verdict::First);
        assert_eq!(Verdict::between(&low, &high, Better::Higher), Verdict::Second);
        assert_eq!(Verdict::between(&high, &low, Better::Lower), Verdict::Second);
        assert_eq!(Verdict::between(&low, &high, Better::Lower), Verdict::First);
    }

    #[test]
    fn where_neither_lost_variety_none_is_better() {
        let (gained, same) = (score(-0.05, -0.04, -0.03), score(-0.01, 0.0, 0.01));
        assert_eq!(Verdict::between(&gained, &same, Better::Lower), Verdict::TooClose);
    }

    #[test]
    fn the_best_of_three_is_better_than_both_others() {
        let scores = [score(0.7, 0.75, 0.8), score(0.9, 0.95, 1.0), score(0.5, 0.55, 0.6)];
        assert_eq!([0, 1, 2].map(|index| is_best(index, &scores, Better::Higher)), [false, true, false]);
        assert_eq!([0, 1, 2].map(|index| is_best(index, &scores, Better::Lower)), [false, false, true]);
    }

    #[test]
    fn overlapping_intervals_have_no_winner() {
        let (left, right) = (score(0.80, 0.9, 0.95), score(0.7, 0.75, 0.81));
        assert_eq!(Verdict::between(&left, &right, Better::Higher), Verdict::TooClose);
        assert!(!is_best(0, &[left, right], Better::Higher) && !is_best(1, &[left, right], Better::Higher));
    }
}
