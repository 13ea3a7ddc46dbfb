//! Small charts as inline SVG: curves over steps, and style against preservation.
//!
//! A chart is drawn 360 units wide with 12-unit text and shown at about that size, so its words
//! stay legible on a phone. Colours come from the page's style sheet, and no two series differ by
//! colour alone.

mod axis;
mod frame;
mod label;
mod line;
mod scatter;

pub use axis::Scale;
pub use line::{LineChart, Series, Smoothing};
pub use scatter::{ScatterChart, ScatterPoint};

/// Whose numbers a mark shows; decides colour, dashes and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tone {
    /// The adapter trained with CAT: solid line, disc.
    Cat,
    /// The only adapter of a page: solid line, disc.
    Adapter,
    /// The plain LoRA: dashed line, square.
    Lora,
    /// The base model without adapter: dotted line, diamond.
    Base,
}

impl Tone {
    /// The style sheet's class.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Cat => "tone-cat",
            Self::Adapter => "tone-adapter",
            Self::Lora => "tone-lora",
            Self::Base => "tone-base",
        }
    }
}
