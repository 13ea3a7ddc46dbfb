//! The images of one artist.

use catelier_pages::chart::Tone;
use catelier_pages::embedded_image::{EmbeddedImage, grid};
use image::RgbImage;
use maud::{Markup, html};

use super::{AdaptedImages, DemoArtist, DemoPrompt};
use crate::error::Result;

impl DemoArtist<'_> {
    pub(super) fn images(&self) -> Result<Markup> {
        let images = self.images.iter().map(|(caption, image)| {
            let alt = format!("By {}: {caption}", self.name);
            Ok((EmbeddedImage::new(image, alt)?, *caption))
        });
        Ok(grid(&images.collect::<Result<Vec<_>>>()?))
    }

    pub(super) fn prompt_cards(&self, trigger: &str) -> Result<Markup> {
        let cards = self.prompts.iter().enumerate();
        let cards =
            cards.map(|(index, prompt)| self.prompt_card(index, prompt, trigger)).collect::<Result<Vec<_>>>()?;
        Ok(html! { div.prompt-cards { @for card in &cards { (card) } } })
    }

    fn prompt_card(&self, index: usize, prompt: &DemoPrompt<'_>, trigger: &str) -> Result<Markup> {
        let base = named("Base", Some(Tone::Reference), EmbeddedImage::new(prompt.base, alt("The base", prompt))?);
        let without = self.adapted(prompt, "without the trigger", |images| images.without_trigger)?;
        let (example, with) =
            (self.example(index)?, self.adapted(prompt, "with the trigger", |images| images.with_trigger)?);
        let columns = format!("--columns:{}", 1 + without.len());
        Ok(html! {
            article.prompt-card {
                h3 { (prompt.prompt) span.detail { "seed " (prompt.seed) } }
                p.row-title { "Without the trigger" }
                div.abreast style=(columns) { (base) @for figure in &without { (figure) } }
                p.row-title { "With \u{201c}" (trigger) "\u{201d}" }
                div.abreast style=(columns) { (example) @for figure in &with { (figure) } }
            }
        })
    }

    /// One image of each run.
    fn adapted<'a>(
        &self,
        prompt: &DemoPrompt<'a>,
        condition: &str,
        image: impl Fn(&AdaptedImages<'a>) -> &'a RgbImage,
    ) -> Result<Vec<Markup>> {
        let pairs = self.runs().zip(&prompt.adapted);
        let figures = pairs.map(|((tone, run), images)| {
            let alt = alt(&format!("{} {condition}", run.title()), prompt);
            Ok(named(&run.title(), Some(tone), EmbeddedImage::new(image(images), alt)?))
        });
        figures.collect()
    }

    /// One of the artist's images, for comparison with a card's lower row.
    fn example(&self, index: usize) -> Result<Markup> {
        let Some((caption, image)) = self.images.iter().cycle().nth(index) else {
            return Ok(html! { figure {} });
        };
        let alt = format!("By {}: {caption}", self.name);
        Ok(named("The artist", None, EmbeddedImage::new(image, alt)?))
    }
}

fn named(name: &str, tone: Option<Tone>, image: EmbeddedImage) -> Markup {
    html! { figure class=[tone.map(Tone::class)] { (image) figcaption { (name) } } }
}

fn alt(who: &str, prompt: &DemoPrompt<'_>) -> String {
    format!("{who}: {}, seed {}", prompt.prompt, prompt.seed)
}
