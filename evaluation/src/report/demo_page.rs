//! The page of the demonstration: one artist, two ways of training, side by side.

mod numbers;
mod pictures;

use catelier_pages::{number, page};
use image::RgbImage;
use maud::html;

use super::words;
use crate::error::Result;
use crate::scores::Scores;

/// Everything the demonstration's page shows.
#[derive(Debug, Clone)]
pub struct DemoPage<'a> {
    /// The artist's name.
    pub artist: &'a str,
    /// The trigger word.
    pub trigger: &'a str,
    /// The pictures that both adapters learned from, with their captions.
    pub artist_pictures: Vec<(&'a str, &'a RgbImage)>,
    /// The prompts that were drawn five ways.
    pub prompts: Vec<DemoPrompt<'a>>,
    /// The adapter trained with CAT.
    pub cat: Contender<'a>,
    /// The adapter trained without.
    pub lora: Contender<'a>,
    /// More settings of both, for the trade-off chart; the two contenders are added by the page.
    pub trade_off: Vec<TradeOff<'a>>,
    /// What to know about the set-up, for instance rank and steps.
    pub settings: Vec<Setting>,
    /// How to do the same with one's own pictures.
    pub commands: Vec<Command<'a>>,
    /// A remark that must not be overlooked: [`super::EMBEDDED_BASE_NOTICE`] for the embedded base.
    pub notice: Option<&'a str>,
}

/// One prompt and seed, drawn five ways.
#[derive(Debug, Clone)]
pub struct DemoPrompt<'a> {
    /// The prompt without the trigger.
    pub prompt: &'a str,
    /// The seed of the start noise.
    pub seed: u64,
    /// The base, without the trigger.
    pub base: &'a RgbImage,
    /// The CAT adapter, without the trigger.
    pub cat_without: &'a RgbImage,
    /// The CAT adapter, with the trigger.
    pub cat_with: &'a RgbImage,
    /// The plain LoRA, without the trigger.
    pub lora_without: &'a RgbImage,
    /// The plain LoRA, with the trigger.
    pub lora_with: &'a RgbImage,
}

/// One adapter of the comparison.
#[derive(Debug, Clone)]
pub struct Contender<'a> {
    /// Its scores.
    pub scores: &'a Scores,
    /// What was logged while it trained.
    pub curves: TrainingCurves,
    /// How long training took, in seconds.
    pub seconds: f64,
}

/// Values logged at steps, in order of the steps.
pub type Curve = Vec<(u64, f64)>;

/// What was logged while an adapter trained; an empty curve is not shown.
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
    /// Whether it was trained with CAT.
    pub with_cat: bool,
    /// Its scores.
    pub scores: &'a Scores,
}

/// A fact about the set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// What it is, for instance `Rank`.
    pub name: String,
    /// Its value, for instance `8`.
    pub value: String,
}

/// A line to type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command<'a> {
    /// What it does.
    pub explanation: &'a str,
    /// What to type.
    pub line: &'a str,
}

impl DemoPage<'_> {
    /// The page as one HTML file.
    ///
    /// # Errors
    /// When a picture cannot be encoded.
    pub fn html(&self) -> Result<String> {
        let (cat, lora) = (self.cat.scores, self.lora.scores);
        let title = words::headline(cat, lora);
        let lede = self.lede();
        let body = html! {
            (page::opening("Catelier demonstration", title, &lede))
            (self.scoreboard())
            @if let Some(notice) = self.notice { (page::notice(notice)) }
            (self.artist_section()?)
            (self.base_section()?)
            (self.prompts_section()?)
            (self.findings_section())
            (self.scores_section())
            (self.trade_off_section())
            (self.training_section())
            (self.commands_section())
            (self.method_section())
        };
        Ok(page::document(&format!("{title} - Catelier demonstration"), &lede, &body))
    }

    fn lede(&self) -> String {
        let n = number::count(self.artist_pictures.len(), "picture", "pictures");
        format!(
            "Two adapters learned the style of {} from the same {n} and the same trigger word, \u{201c}{}\u{201d}. Plain LoRA only learned to draw them. CAT (Contrastive Adapter Training) also had to leave everything else alone: without the trigger, draw as if nothing had been learned.",
            self.artist, self.trigger
        )
    }
}
