//! The page of the demonstration: artists and the adapters of their styles, side by side.

mod images;
mod scores;

use catelier_pages::chart::Tone;
use catelier_pages::{number, page};
use image::RgbImage;
use maud::{Markup, html};

use super::{findings, list};
use crate::error::{Error, Result};
use crate::scores::Scores;

/// The contents of the demonstration's page.
#[derive(Debug, Clone)]
pub struct DemoPage<'a> {
    /// The artists; at least one.
    pub artists: Vec<DemoArtist<'a>>,
    /// The trigger word.
    pub trigger: &'a str,
    /// Facts about the set-up, for instance rank and steps.
    pub settings: Vec<Setting>,
    /// A remark under the times of training; empty for none.
    pub training_note: &'a str,
    /// Commands that do the same with one's own images.
    pub commands: Vec<Command<'a>>,
    /// A remark that must not be overlooked: [`super::EMBEDDED_BASE_NOTICE`] for the embedded base.
    pub notice: Option<&'a str>,
}

/// One artist, and the adapters that learned the artist's style.
#[derive(Debug, Clone)]
pub struct DemoArtist<'a> {
    /// The artist's name.
    pub name: &'a str,
    /// The style in a few words; empty for none.
    pub description: &'a str,
    /// The images that all adapters learned from, with their captions.
    pub images: Vec<(&'a str, &'a RgbImage)>,
    /// The prompts that the base and every adapter drew: the same for all artists.
    pub prompts: Vec<DemoPrompt<'a>>,
    /// The run that the page is about.
    pub run: Run<'a>,
    /// The run that the findings compare it with.
    pub baseline: Run<'a>,
    /// More runs, shown after these two.
    pub more: Vec<Run<'a>>,
    /// More marks of the trade-off chart, which has one for each run.
    pub trade_off: Vec<TradeOff<'a>>,
}

/// One prompt and seed, drawn by the base and by every adapter.
#[derive(Debug, Clone)]
pub struct DemoPrompt<'a> {
    /// The prompt without the trigger.
    pub prompt: &'a str,
    /// The seed of the start noise.
    pub seed: u64,
    /// The base, without the trigger.
    pub base: &'a RgbImage,
    /// Images of each run: first the page's, then the baseline's, then the others in their order.
    pub adapted: Vec<AdaptedImages<'a>>,
}

/// Images of one adapter for one prompt and seed.
#[derive(Debug, Clone, Copy)]
pub struct AdaptedImages<'a> {
    /// Drawn without the trigger.
    pub without_trigger: &'a RgbImage,
    /// Drawn with the trigger.
    pub with_trigger: &'a RgbImage,
}

/// One adapter of the comparison.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    /// Its name as it stands within a sentence, for instance `CAT` or `plain LoRA`.
    pub name: &'a str,
    /// How it was trained, in a sentence.
    pub method: &'a str,
    /// Its scores.
    pub scores: &'a Scores,
    /// Curves of its training.
    pub curves: TrainingCurves,
    /// Duration of training, in seconds.
    pub seconds: f64,
}

/// Values logged at steps, in order of the steps.
pub type Curve = Vec<(u64, f64)>;

/// Curves of a training run; an empty curve is not shown.
#[derive(Debug, Clone, Default)]
pub struct TrainingCurves {
    /// The denoising loss.
    pub loss: Curve,
    /// The CAT term, before its weight.
    pub cat: Curve,
    /// Mean squared distance of adapted and base prediction on held-out prompts.
    pub drift: Curve,
    /// The learning rate.
    pub learning_rate: Curve,
}

/// One more adapter in the trade-off chart.
#[derive(Debug, Clone)]
pub struct TradeOff<'a> {
    /// Its name, short enough to stand beside a mark.
    pub label: String,
    /// Its look, for instance the look of the run whose settings it varies.
    pub tone: Tone,
    /// Its scores.
    pub scores: &'a Scores,
}

/// A fact about the set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name, for instance `Rank`.
    pub name: String,
    /// Its value, for instance `8`.
    pub value: String,
}

/// A command for the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command<'a> {
    /// What the command does, in words.
    pub explanation: &'a str,
    /// The command line.
    pub line: &'a str,
}

impl DemoPage<'_> {
    /// The page as one HTML file.
    ///
    /// # Errors
    /// When a prompt does not have images of every run, or an image cannot be encoded.
    pub fn html(&self) -> Result<String> {
        self.artists.iter().try_for_each(DemoArtist::check)?;
        let title = findings::headline(&self.artists);
        let lede = self.lede();
        let sections = self.artists.iter().map(|artist| artist.section(self.trigger)).collect::<Result<Vec<_>>>()?;
        let body = html! {
            (page::opening("Catelier demonstration", &title, &lede))
            @if let Some(notice) = self.notice { (page::notice(notice)) }
            @for section in &sections { (section) }
            (self.scores_section())
            (self.trade_off_section())
            (self.training_section())
            (self.commands_section())
            (self.method_section())
        };
        Ok(page::document(&format!("{title} - Catelier demonstration"), &lede, &body))
    }

    /// The page's runs by their method: those of the first artist, since all artists have the same.
    fn lede(&self) -> String {
        let Some(first) = self.artists.first() else { return String::new() };
        let names = list(&self.artists.iter().map(|artist| artist.name.to_owned()).collect::<Vec<_>>());
        let images = number::count(first.images.len(), "image", "images");
        let mut methods: Vec<&str> = first.runs().map(|(_, run)| run.method).collect();
        // The order is from the plainest method to the run that the page is about.
        methods.reverse();
        format!(
            "{} adapters learned the style of {names}, each from {images} and the trigger word \u{201c}{}\u{201d}. {}",
            methods.len() * self.artists.len(),
            self.trigger,
            methods.join(" ")
        )
    }
}

impl DemoArtist<'_> {
    fn check(&self) -> Result<()> {
        let expected = self.runs().count();
        match self.prompts.iter().map(|prompt| prompt.adapted.len()).find(|found| *found != expected) {
            Some(found) => Err(Error::LengthMismatch { what: "runs and images of a prompt", expected, found }),
            None => Ok(()),
        }
    }

    /// All runs with their looks: the page's, the baseline, and the others.
    fn runs(&self) -> impl Iterator<Item = (Tone, &Run<'_>)> {
        let runs = [&self.run, &self.baseline].into_iter().chain(&self.more);
        runs.enumerate().map(|(index, run)| (Tone::Series(index), run))
    }

    /// The artist's images, the prompts with every adapter, the scores in front and what they say.
    fn section(&self, trigger: &str) -> Result<Markup> {
        let body = html! {
            h3 { "The artist's images" }
            p.small { "This is all that the adapters saw of the style, each image with its caption and the trigger word in front." }
            (self.images()?)
            h3 { "The same prompts, with every adapter" }
            p.small { "Every card has one prompt and one seed. Upper row, without the trigger: all images should look alike. Lower row, with the trigger: the same thing should be there, in the artist's hand." }
            (self.prompt_cards(trigger)?)
            h3 { "What was measured" }
            (self.scoreboard())
            (self.findings())
        };
        Ok(page::section(&capitalized(self.name), self.description, &body))
    }
}

/// A name at the beginning of a line.
fn capitalized(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

impl Run<'_> {
    /// The name as a heading or at the beginning of a sentence.
    pub(super) fn title(&self) -> String {
        capitalized(self.name)
    }
}
