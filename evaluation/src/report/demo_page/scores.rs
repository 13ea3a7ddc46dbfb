//! The sections with scores, charts and settings.

use catelier_pages::chart::{LineChart, Scale, ScatterChart, ScatterPoint, Series, Smoothing, Tone, strip};
use catelier_pages::{Estimate, number, page};
use maud::{Markup, html};

use super::{Curve, DemoPage, Run, TrainingCurves};
use crate::metrics::{METRICS, Metric};
use crate::report::evaluation_page::{definitions, measured_with};
use crate::report::findings::findings;
use crate::report::score_table::{Reference, comparison};
use crate::scores::Scores;

/// Number of scores at the top of the page.
const HEADLINE_SCORES: usize = 3;

/// A curve of training as the page shows it.
struct CurveKind {
    title: &'static str,
    caption: &'static str,
    y_title: &'static str,
    scale: Scale,
    smoothing: Smoothing,
    of: fn(&TrainingCurves) -> &Curve,
}

const CURVES: [CurveKind; 4] = [
    CurveKind {
        title: "Denoising loss",
        caption: "How well the artist's images are predicted; lower is better.",
        y_title: "loss",
        scale: Scale::Linear,
        smoothing: Smoothing::Trend,
        of: |curves| &curves.loss,
    },
    CurveKind {
        title: "CAT term",
        caption: "How far the prediction without the trigger has moved from the base's. CAT holds it down.",
        y_title: "CAT term",
        scale: Scale::Linear,
        smoothing: Smoothing::Trend,
        of: |curves| &curves.cat,
    },
    CurveKind {
        title: "Drift",
        caption: "The same distance on prompts that were not trained on. Each line up is ten times more.",
        y_title: "drift",
        scale: Scale::Logarithmic,
        smoothing: Smoothing::None,
        of: |curves| &curves.drift,
    },
    CurveKind {
        title: "Learning rate",
        caption: "How large the steps were.",
        y_title: "learning rate",
        scale: Scale::Linear,
        smoothing: Smoothing::None,
        of: |curves| &curves.learning_rate,
    },
];

impl DemoPage<'_> {
    /// The three most important scores of every run, at the top of the page.
    pub(super) fn scoreboard(&self) -> Markup {
        html! {
            div.scoreboard {
                @for metric in &METRICS[..HEADLINE_SCORES] {
                    (self.score_tile(metric))
                }
            }
        }
    }

    fn score_tile(&self, metric: &Metric) -> Markup {
        let reference = Reference::of(metric, self.run.scores);
        html! {
            article.tile {
                h2 { (metric.title) }
                @for (tone, run) in self.runs() {
                    @if let Some(score) = metric.of(run.scores) {
                        div.tile-row {
                            span class=(format!("name {}", tone.class())) { (run.title()) }
                            (strip(tone, score.into(), reference.as_ref().map(|reference| reference.score.mean)))
                            span.value { (number::two_decimals(score.mean)) }
                        }
                    }
                }
                @if let Some(Reference { whose, score }) = &reference {
                    p.reference { (whose) ": " (number::two_decimals(score.mean)) }
                }
            }
        }
    }

    pub(super) fn findings_section(&self) -> Markup {
        let findings = findings(&self.run, &self.baseline);
        let body = html! {
            ul.findings { @for finding in &findings { li { (finding) } } }
        };
        page::section("What one sees", "Written from the numbers, whichever way they fall.", &body)
    }

    pub(super) fn scores_section(&self) -> Markup {
        let runs: Vec<&Run<'_>> = self.runs().map(|(_, run)| run).collect();
        page::section("The scores", "", &comparison(&runs))
    }

    pub(super) fn trade_off_section(&self) -> Markup {
        let chart = ScatterChart {
            title: "Style against preservation",
            caption: "Up is nearer to the artist with the trigger, right is nearer to the base without it: the upper right corner is best. Bars are 95 % intervals; the diamond is the base without any adapter.",
            x_title: "kept without the trigger \u{2192}",
            y_title: "\u{2191} style with the trigger",
            points: self.trade_off_points(),
        };
        html! {
            @if let Some(drawn) = chart.render() {
                (page::section(chart.title, "", &html! { div.wide { (drawn) } }))
            }
        }
    }

    fn trade_off_points(&self) -> Vec<ScatterPoint> {
        let runs = self.runs().filter_map(|(tone, run)| point(&run.title(), tone, run.scores));
        let more = self.trade_off.iter().filter_map(|one| point(&one.label, one.tone, one.scores));
        runs.chain(more).chain(base_point(self.run.scores)).collect()
    }

    pub(super) fn training_section(&self) -> Markup {
        let charts: Vec<Markup> = CURVES.iter().filter_map(|kind| self.chart(kind)).collect();
        let times = self.runs().map(|(_, run)| format!("{} with {}", number::duration(run.seconds), run.name));
        let time = format!("Training took {}. {}", list(&times.collect::<Vec<_>>()), self.training_note);
        page::section("Training", &time, &html! { div.charts { @for chart in &charts { (chart) } } })
    }

    fn chart(&self, kind: &CurveKind) -> Option<Markup> {
        let first = (kind.of)(&self.run.curves);
        let series = if self.runs().all(|(_, run)| (kind.of)(&run.curves) == first) {
            vec![series("All".to_owned(), Tone::Series(0), first)]
        } else {
            self.runs().map(|(tone, run)| series(run.title(), tone, (kind.of)(&run.curves))).collect()
        };
        let &CurveKind { title, caption, y_title, scale, smoothing, .. } = kind;
        LineChart { title, caption, x_title: "step", y_title, scale, smoothing, series }.render()
    }

    pub(super) fn commands_section(&self) -> Markup {
        let body = html! {
            ol.commands {
                @for command in &self.commands {
                    li { p { (command.explanation) } pre { code { (command.line) } } }
                }
            }
        };
        html! {
            @if !self.commands.is_empty() {
                (page::section("With your own images", "", &body))
            }
        }
    }

    pub(super) fn method_section(&self) -> Markup {
        let scores = self.run.scores;
        let (generation, counts) = (&scores.generation, &scores.counts);
        let mut facts: Vec<(&str, String)> =
            self.settings.iter().map(|setting| (setting.name.as_str(), setting.value.clone())).collect();
        facts.extend([
            ("Base", generation.base.clone()),
            ("Sampling", generation.sampling()),
            (
                "Images scored",
                format!(
                    "per adapter {} pairs without the trigger, {} with it",
                    counts.without_trigger, counts.with_trigger
                ),
            ),
            ("Measured with", measured_with(&scores.extractor)),
        ]);
        page::section("How this was measured", "", &html! { (definitions()) (page::facts(&facts)) })
    }
}

fn series(name: String, tone: Tone, curve: &Curve) -> Series {
    let points = curve.iter().map(|(step, value)| (*step as f64, *value)).collect();
    Series { name, tone, points }
}

fn point(label: &str, tone: Tone, scores: &Scores) -> Option<ScatterPoint> {
    let label = label.to_owned();
    Some(ScatterPoint { label, tone, x: scores.kps_no_token.into(), y: scores.identity?.into() })
}

/// `a, b and c`.
fn list(items: &[String]) -> String {
    match items {
        [most @ .., last] if !most.is_empty() => format!("{} and {last}", most.join(", ")),
        items => items.concat(),
    }
}

/// The mark of the base, which has kept everything and learned nothing.
fn base_point(scores: &Scores) -> Option<ScatterPoint> {
    let y = scores.base_identity?.into();
    let x = Estimate { value: 1.0, low: 1.0, high: 1.0 };
    Some(ScatterPoint { label: "Base".to_owned(), tone: Tone::Reference, x, y })
}
