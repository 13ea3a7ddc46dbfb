//! The sections with scores, charts and settings.

use catelier_pages::chart::{LineChart, Scale, ScatterChart, ScatterPoint, Series, Smoothing, Tone, strip};
use catelier_pages::{Estimate, number, page};
use maud::{Markup, html};

use super::{Curve, DemoArtist, DemoPage, Run, TrainingCurves, capitalized};
use crate::metrics::Metric;
use crate::report::evaluation_page::{definitions, measured_with};
use crate::report::findings::findings;
use crate::report::list;
use crate::report::score_table::comparison;
use crate::scores::Scores;

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

impl DemoArtist<'_> {
    /// The most important scores of every run.
    pub(super) fn scoreboard(&self) -> Markup {
        html! {
            div.scoreboard {
                @for metric in Metric::headline() {
                    (self.score_tile(metric))
                }
            }
        }
    }

    fn score_tile(&self, metric: &Metric) -> Markup {
        html! {
            article.tile {
                h4 { (metric.title) }
                @for (tone, run) in self.runs() {
                    @if let Some(score) = metric.of(run.scores) {
                        div.tile-row {
                            span class=(format!("name {}", tone.class())) { (run.title()) }
                            (strip(tone, score.into(), None))
                            span.value { (number::two_decimals(score.mean)) }
                        }
                    }
                }
                @if let Some(scale) = &metric.scale {
                    p.reference { "0 is " (scale.floor) ", 1 " (scale.ceiling) }
                }
            }
        }
    }

    pub(super) fn findings(&self) -> Markup {
        let findings = findings(&self.run, &self.baseline);
        html! { ul.findings { @for finding in &findings { li { (finding) } } } }
    }

    fn trade_off_chart(&self) -> ScatterChart<'_> {
        ScatterChart {
            title: self.name,
            caption: "Up is nearer to the artist with the trigger, right is nearer to the base without it: the upper right corner is best. Bars are 95 % intervals; the diamond is the base without any adapter.",
            x_title: "kept without the trigger \u{2192}",
            y_title: "\u{2191} style with the trigger",
            points: self.trade_off_points(),
        }
    }

    fn trade_off_points(&self) -> Vec<ScatterPoint> {
        let runs = self.runs().filter_map(|(tone, run)| point(&run.title(), tone, run.scores));
        let more = self.trade_off.iter().filter_map(|one| point(&one.label, one.tone, one.scores));
        runs.chain(more).chain(self.run.scores.style.map(|_| base_point())).collect()
    }

    fn curve_chart(&self, kind: &CurveKind) -> Option<Markup> {
        let first = (kind.of)(&self.run.curves);
        let series = if self.runs().all(|(_, run)| (kind.of)(&run.curves) == first) {
            vec![series("All".to_owned(), Tone::Series(0), first)]
        } else {
            self.runs().map(|(tone, run)| series(run.title(), tone, (kind.of)(&run.curves))).collect()
        };
        let &CurveKind { title, caption, y_title, scale, smoothing, .. } = kind;
        LineChart { title, caption, x_title: "step", y_title, scale, smoothing, series }.render()
    }
}

impl DemoPage<'_> {
    pub(super) fn scores_section(&self) -> Markup {
        let tables = self.artists.iter().map(|artist| {
            let runs: Vec<&Run<'_>> = artist.runs().map(|(_, run)| run).collect();
            html! { h3 { (capitalized(artist.name)) } (comparison(&runs)) }
        });
        page::section("All scores", "", &html! { @for table in tables { (table) } })
    }

    pub(super) fn trade_off_section(&self) -> Markup {
        let charts: Vec<Markup> = self.artists.iter().filter_map(|artist| artist.trade_off_chart().render()).collect();
        html! {
            @if !charts.is_empty() {
                (page::section("Style against preservation", "", &html! { div.charts { @for chart in &charts { (chart) } } }))
            }
        }
    }

    /// Times and curves of all trainings.
    pub(super) fn training_section(&self) -> Markup {
        let times = self.artists.iter().flat_map(|artist| {
            let time = |(_, run): (Tone, &Run<'_>)| {
                format!("{} with {} for {}", number::duration(run.seconds), run.name, artist.name)
            };
            artist.runs().map(time).collect::<Vec<_>>()
        });
        let time = format!("Training took {}. {}", list(&times.collect::<Vec<_>>()), self.training_note);
        let charts = self.artists.iter().map(|artist| {
            let charts: Vec<Markup> = CURVES.iter().filter_map(|kind| artist.curve_chart(kind)).collect();
            html! {
                @if !charts.is_empty() {
                    h3 { (capitalized(artist.name)) }
                    div.charts { @for chart in &charts { (chart) } }
                }
            }
        });
        page::section("Training", &time, &html! { @for charts in charts { (charts) } })
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
        let mut facts: Vec<(&str, String)> =
            self.settings.iter().map(|setting| (setting.name.as_str(), setting.value.clone())).collect();
        if let Some(artist) = self.artists.first() {
            facts.extend(measured(artist.run.scores));
        }
        page::section("How this was measured", "", &html! { (definitions()) (page::facts(&facts)) })
    }
}

/// How the images were generated and measured.
fn measured(scores: &Scores) -> [(&'static str, String); 5] {
    let (generation, counts) = (&scores.generation, &scores.counts);
    [
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
        ("Style measured with", measured_with(scores.style_extractor.as_ref().unwrap_or(&scores.extractor))),
    ]
}

fn series(name: String, tone: Tone, curve: &Curve) -> Series {
    let points = curve.iter().map(|(step, value)| (*step as f64, *value)).collect();
    Series { name, tone, points }
}

fn point(label: &str, tone: Tone, scores: &Scores) -> Option<ScatterPoint> {
    let (x, y) = (scores.preservation?.score, scores.style?.score);
    Some(ScatterPoint { label: label.to_owned(), tone, x: x.into(), y: y.into() })
}

/// The mark of the base, which has kept everything and learned nothing.
fn base_point() -> ScatterPoint {
    let exactly = |value| Estimate { value, low: value, high: value };
    ScatterPoint { label: "Base".to_owned(), tone: Tone::Reference, x: exactly(1.0), y: exactly(0.0) }
}
