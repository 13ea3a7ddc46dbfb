//! The part of the story that pictures tell.

use catelier_pages::chart::Tone;
use catelier_pages::embedded_image::{EmbeddedImage, grid};
use catelier_pages::page;
use maud::{Markup, html};

use super::{DemoPage, DemoPrompt};
use crate::error::Result;

/// How a contender is named under a picture: name and tone.
const BASE: (&str, Option<Tone>) = ("Base", Some(Tone::Reference));
const CAT: (&str, Option<Tone>) = ("CAT", Some(Tone::Series(0)));
const LORA: (&str, Option<Tone>) = ("Plain LoRA", Some(Tone::Series(1)));
const ARTIST: (&str, Option<Tone>) = ("The artist", None);

impl DemoPage<'_> {
    pub(super) fn artist_section(&self) -> Result<Markup> {
        let pictures = self.artist_pictures.iter().map(|(caption, picture)| {
            let alt = format!("By {}: {caption}", self.artist);
            Ok((EmbeddedImage::new(picture, alt)?, *caption))
        });
        Ok(page::section(
            "The artist's pictures",
            "This is all that the adapters saw of the style, each picture with its caption and the trigger word in front.",
            &grid(&pictures.collect::<Result<Vec<_>>>()?),
        ))
    }

    pub(super) fn base_section(&self) -> Result<Markup> {
        let pictures = self.prompts.iter();
        let pictures =
            pictures.map(|prompt| Ok((EmbeddedImage::new(prompt.base, alt("The base", prompt))?, prompt.prompt)));
        Ok(page::section(
            "What the base draws",
            "The model before it met the artist. This is what should be kept when nobody asks for the style.",
            &grid(&pictures.collect::<Result<Vec<_>>>()?),
        ))
    }

    pub(super) fn prompts_section(&self) -> Result<Markup> {
        let cards = self.prompts.iter().enumerate();
        let cards = cards.map(|(index, prompt)| self.prompt_card(index, prompt)).collect::<Result<Vec<_>>>()?;
        let body = html! { div.prompt-cards { @for card in &cards { (card) } } };
        Ok(page::section(
            "The same prompts, with both adapters",
            "Every card has one prompt and one seed. Upper row, without the trigger: all three should look alike. Lower row, with the trigger: both should look like the artist.",
            &body,
        ))
    }

    fn prompt_card(&self, index: usize, prompt: &DemoPrompt<'_>) -> Result<Markup> {
        let without = [
            named(BASE, EmbeddedImage::new(prompt.base, alt("The base", prompt))?),
            named(CAT, EmbeddedImage::new(prompt.cat_without, alt("CAT without the trigger", prompt))?),
            named(LORA, EmbeddedImage::new(prompt.lora_without, alt("Plain LoRA without the trigger", prompt))?),
        ];
        let with = [
            self.example(index)?,
            named(CAT, EmbeddedImage::new(prompt.cat_with, alt("CAT with the trigger", prompt))?),
            named(LORA, EmbeddedImage::new(prompt.lora_with, alt("Plain LoRA with the trigger", prompt))?),
        ];
        Ok(html! {
            article.prompt-card {
                h3 { (prompt.prompt) span.detail { "seed " (prompt.seed) } }
                p.row-title { "Without the trigger" }
                div.three { @for figure in &without { (figure) } }
                p.row-title { "With \u{201c}" (self.trigger) "\u{201d}" }
                div.three { @for figure in &with { (figure) } }
            }
        })
    }

    /// One of the artist's pictures, to hold a card's lower row against.
    fn example(&self, index: usize) -> Result<Markup> {
        let Some((caption, picture)) = self.artist_pictures.iter().cycle().nth(index) else {
            return Ok(html! {});
        };
        let alt = format!("By {}: {caption}", self.artist);
        Ok(named(ARTIST, EmbeddedImage::new(picture, alt)?))
    }
}

fn named((name, tone): (&str, Option<Tone>), picture: EmbeddedImage) -> Markup {
    html! { figure class=[tone.map(Tone::class)] { (picture) figcaption { (name) } } }
}

fn alt(who: &str, prompt: &DemoPrompt<'_>) -> String {
    format!("{who}: {}, seed {}", prompt.prompt, prompt.seed)
}
