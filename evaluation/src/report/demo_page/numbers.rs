//! The part of the story that numbers tell.

use maud::{Markup, html};

use super::{Contender, Curve, DemoPage, TrainingCurves};
use crate::metrics::{METRICS, Metric};
use crate::report::chart::{LineChart, Scale, ScatterChart, ScatterPoint, Series, Smoothing, Tone};
use crate::report::evaluation_page::{definitions, measured_with};
use crate::report::score_table::{Reference, comparison, strip};
use crate::report::{number, page, words};
use crate::score::Score;
use crate::scores::Scores;

/// How many scores stand at the top.
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
        caption: "How well the artist's pictures are predicted; lower is better.",
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
    /// The three scores that tell the story, before anything else.
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
        let reference = Reference::of(metric, self.cat.scores);
        html! {
            article.tile {
                h2 { (metric.title) }
                @for (name, tone, contender) in self.contenders() {
                    @if let Some(score) = metric.of(contender.scores) {
                        div.tile-row {
                            span class=(format!("name {}", tone.class())) { (name) }
                            (strip(tone, &score, reference.as_ref()))
                            span.value { (number::score(score.mean)) }
                        }
                    }
                }
                @if let Some(Reference { whose, score }) = &reference {
                    p.reference { (whose) ": " (number::score(score.mean)) }
                }
            }
        }
    }

    fn contenders(&self) -> [(&'static str, Tone, &Contender<'_>); 2] {
        [("CAT", Tone::Cat, &self.cat), ("Plain LoRA", Tone::Lora, &self.lora)]
    }

    pub(super) fn findings_section(&self) -> Markup {
        let findings = words::findings(self.cat.scores, self.lora.scores);
        let body = html! {
            ul.findings { @for finding in &findings { li { (finding) } } }
        };
        page::section("What one sees", "Written from the numbers, whichever way they fall.", &body)
    }

    pub(super) fn scores_section(&self) -> Markup {
        page::section("The scores", "", &comparison(self.cat.scores, self.lora.scores))
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
        let contenders = self.contenders().into_iter();
        let contenders = contenders.filter_map(|(label, tone, contender)| point(label, tone, contender.scores));
        let more = self.trade_off.iter().filter_map(|one| {
            let tone = if one.with_cat { Tone::Cat } else { Tone::Lora };
            point(&one.label, tone, one.scores)
        });
        contenders.chain(more).chain(base_point(self.cat.scores)).collect()
    }

    pub(super) fn training_section(&self) -> Markup {
        let charts: Vec<Markup> = CURVES.iter().filter_map(|kind| self.chart(kind)).collect();
        let time = format!(
            "Training took {} with CAT and {} with plain LoRA. CAT runs the model twice more at every step.",
            number::duration(self.cat.seconds),
            number::duration(self.lora.seconds)
        );
        page::section("Training", &time, &html! { div.charts { @for chart in &charts { (chart) } } })
    }

    fn chart(&self, kind: &CurveKind) -> Option<Markup> {
        let [cat, lora] = [&self.cat, &self.lora].map(|contender| (kind.of)(&contender.curves));
        let series = if cat == lora {
            vec![series("Both", Tone::Adapter, cat)]
        } else {
            vec![series("CAT", Tone::Cat, cat), series("Plain LoRA", Tone::Lora, lora)]
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
                (page::section("With your own pictures", "", &body))
            }
        }
    }

    pub(super) fn method_section(&self) -> Markup {
        let scores = self.cat.scores;
        let (generation, counts) = (&scores.generation, &scores.counts);
        let mut facts: Vec<(&str, String)> =
            self.settings.iter().map(|setting| (setting.name.as_str(), setting.value.clone())).collect();
        facts.extend([
            ("Base", generation.base.clone()),
            ("Sampling", generation.sampling()),
            (
                "Pictures scored",
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

fn series(name: &str, tone: Tone, curve: &Curve) -> Series {
    let points = curve.iter().map(|(step, value)| (*step as f64, *value)).collect();
    Series { name: name.to_owned(), tone, points }
}

fn point(label: &str, tone: Tone, scores: &Scores) -> Option<ScatterPoint> {
    let label = label.to_owned();
    Some(ScatterPoint { label, tone, x: scores.kps_no_token, y: scores.identity? })
}

/// The base keeps itself entirely and has learned nothing.
fn base_point(scores: &Scores) -> Option<ScatterPoint> {
    let y = scores.base_identity?;
    let x = Score { mean: 1.0, low: 1.0, high: 1.0, n: y.n };
    Some(ScatterPoint { label: "Base".to_owned(), tone: Tone::Base, x, y })
}
