//! The page of a simulated federation: what each adapter draws and scores, round by round, and who was left out.

use catelier_evaluation::Reference;
use catelier_evaluation::report::EMBEDDED_BASE_NOTICE;
use catelier_federation::RoundReport;
use catelier_pages::chart::{LineChart, Scale, Series, Smoothing, Tone};
use catelier_pages::embedded_image::grid;
use catelier_pages::number::{count, two_decimals};
use catelier_pages::page::{document, facts, notice, opening, section};
use catelier_pages::{EmbeddedImage, Result};
use image::RgbImage;
use maud::{Markup, html};

use super::{Exchange, Simulation, SimulationScore};
use crate::settings::ResolvedSimulate;

/// Images of an artist that the page shows beside those of its adapters.
const REFERENCES: usize = 2;

const MIB: f64 = (1 << 20) as f64;

/// The image of one adapter that the page shows: of the first prompt with the trigger.
pub(super) struct Shown {
    pub(super) artist: &'static str,
    pub(super) adapter: &'static str,
    pub(super) image: RgbImage,
}

/// What the page shows.
pub(super) struct FederationPage<'a> {
    pub(super) settings: &'a ResolvedSimulate,
    pub(super) simulation: &'a Simulation,
    pub(super) prompt: &'a str,
    /// The images of every artist, those that joined late included.
    pub(super) artists: Vec<(&'static str, &'a [Reference])>,
    pub(super) shown: &'a [Shown],
}

impl FederationPage<'_> {
    /// The page.
    pub(super) fn html(&self) -> Result<String> {
        let title = self.title();
        let lede = "Every artist trained on images of its own; only adapters, or what they know, were averaged.";
        let body = html! {
            (opening("Simulated federation", &title, lede))
            (notice(EMBEDDED_BASE_NOTICE))
            (facts(&self.facts()))
            (section("What each adapter draws", &format!("“{}” with the artist's trigger, one seed.", self.prompt), &self.images()?))
            (section("What each adapter scores", "Means over the prompts, from 0 (the base) to 1 (the artist's own images; the base unchanged).", &self.scores()))
            @if let Some(charts) = self.charts() {
                (section("Round by round", "The averaged adapter.", &charts))
            }
            (section("The rounds", "Norms are of the update of the base; apart is how far the artists' updates lie from their mean.", &self.rounds()))
        };
        Ok(document(&title, lede, &body))
    }

    fn title(&self) -> String {
        let ResolvedSimulate { artists, rounds, exchange, .. } = self.settings;
        let rule = match exchange {
            Exchange::Adapters => format!("of {}", self.simulation.strategy),
            Exchange::Knowledge => "of shared knowledge".to_owned(),
        };
        let artists = count(artists.len(), "artist", "artists");
        format!("{artists}, {} {rule}", count(*rounds, "round", "rounds"))
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let ResolvedSimulate { local_steps, images, loss, ranks, poisoned, .. } = self.settings;
        let of = |adapter: &str, value: fn(&SimulationScore) -> Option<f64>| {
            mean(self.last().filter(|score| score.adapter == adapter).filter_map(value))
        };
        let kept = |adapter: &str| of(adapter, |score| Some(score.kps_no_token));
        let mut facts = vec![
            ("Style, own", of("own", |score| score.style)),
            ("Style, averaged", of("averaged", |score| score.style)),
            ("kps_no_token, averaged", kept("averaged")),
            ("Steps in a round", local_steps.to_string()),
            ("Images", images.to_string()),
            ("Loss", format!("{loss:?}").to_lowercase()),
            ("Ranks", ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        ];
        facts.extend((*poisoned > 0).then(|| ("Poisoned", count(*poisoned, "artist", "artists"))));
        facts.extend(self.simulation.epsilon.map(|epsilon| ("Epsilon", two_decimals(epsilon))));
        facts
    }

    /// The scores at the end.
    fn last(&self) -> impl Iterator<Item = &SimulationScore> {
        self.simulation.scores.iter().filter(|score| score.round.is_none())
    }

    fn images(&self) -> Result<Markup> {
        let mut rows = Vec::new();
        for (artist, references) in &self.artists {
            let mut images = Vec::new();
            for reference in references.iter().take(REFERENCES) {
                let words = format!("a training image by {artist}");
                images.push((EmbeddedImage::new(&reference.image, words)?, "its own image"));
            }
            for shown in self.shown.iter().filter(|shown| shown.artist == *artist) {
                let words = format!("drawn with the adapter `{}` of {artist}", shown.adapter);
                images.push((EmbeddedImage::new(&shown.image, words)?, shown.adapter));
            }
            rows.push((artist, grid(&images)));
        }
        Ok(html! { @for (artist, row) in rows { h3 { (artist) } (row) } })
    }

    fn scores(&self) -> Markup {
        let cell = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), two_decimals);
        html! {
            table {
                thead { tr { th { "artist" } th { "adapter" } th { "style" } th { "content" } th { "preservation" } th { "kps_no_token" } } }
                tbody {
                    @for score in self.last() {
                        tr {
                            th scope="row" { (score.artist) }
                            td { (score.adapter) }
                            td { (cell(score.style)) }
                            td { (cell(score.content)) }
                            td { (cell(score.preservation)) }
                            td { (two_decimals(score.kps_no_token)) }
                        }
                    }
                }
            }
        }
    }

    fn charts(&self) -> Option<Markup> {
        let by_round = self.simulation.scores.iter().any(|score| score.round.is_some());
        let chart = |title, caption, value: fn(&SimulationScore) -> Option<f64>| {
            let series = self.artists.iter().enumerate().map(|(index, (artist, _))| Series {
                name: (*artist).to_owned(),
                tone: Tone::Series(index),
                points: self.by_round(artist, value),
            });
            let (scale, smoothing) = (Scale::Linear, Smoothing::None);
            LineChart { title, caption, x_title: "round", y_title: title, scale, smoothing, series: series.collect() }
                .render()
        };
        by_round.then(|| {
            html! {
                div.charts {
                    @if let Some(chart) = chart("style", "Does the averaged adapter still draw each artist's hand?", |score| score.style) { (chart) }
                    @if let Some(chart) = chart("preservation", "Is the base as it was, without a trigger?", |score| score.preservation) { (chart) }
                }
            }
        })
    }

    /// The averaged adapter's values for an artist, by round; the last one is the end.
    fn by_round(&self, artist: &str, value: fn(&SimulationScore) -> Option<f64>) -> Vec<(f64, f64)> {
        let averaged =
            self.simulation.scores.iter().filter(|score| score.artist == artist && score.adapter == "averaged");
        let point = |score: &SimulationScore| Some((score.round.unwrap_or(self.settings.rounds) as f64, value(score)?));
        averaged.filter_map(point).collect()
    }

    fn rounds(&self) -> Markup {
        html! {
            table {
                thead { tr { th { "round" } th { "took part" } th { "left out, and why" } th { "norm" } th { "change" } th { "from the exact mean" } th { "apart" } th { "sent" } } }
                tbody {
                    @for round in &self.simulation.rounds { (self.round(round)) }
                }
            }
        }
    }

    fn round(&self, round: &RoundReport) -> Markup {
        let clients: Vec<&str> = round.clients.iter().map(|client| client.client.as_str()).collect();
        html! {
            tr {
                th scope="row" { (round.round) }
                td { (clients.join(", ")) }
                td { @for (client, reason) in &round.failed { p { b { (client) } ": " (reason) } } }
                td { (format!("{:.3}", round.norm)) }
                td { (format!("{:.3}", round.change)) }
                td { (format!("{:.4}", round.relative_distance)) }
                td { (format!("{:.2}", round.spread)) }
                td { (format!("{:.1} MiB", round.bytes_sent as f64 / MIB)) }
            }
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> String {
    let values: Vec<f64> = values.collect();
    match values.len() {
        0 => "–".to_owned(),
        count => two_decimals(values.iter().sum::<f64>() / count as f64),
    }
}
