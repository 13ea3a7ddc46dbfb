//! Pages that explain scores: one HTML file each, nothing loaded from anywhere.
//!
//! Images and scores come from the caller. Charts, embedded images and the style sheet come from `catelier_pages`.

mod demo_page;
mod evaluation_page;
mod findings;
mod score_table;

pub use demo_page::{
    AdaptedImages, Command, Curve, DemoArtist, DemoPage, DemoPrompt, Run, Setting, TradeOff, TrainingCurves,
};
pub use evaluation_page::EvaluationPage;

/// The notice on every page with images of the embedded base.
pub const EMBEDDED_BASE_NOTICE: &str = "These images come from the tiny model that is built into the program. It was made so that everything can be shown and tested in a minute without a download: it knows a handful of drawn things at 64 pixels. It is for demonstration and is not a model for artists' work.";

/// `a, b and c`.
fn list(items: &[String]) -> String {
    match items {
        [most @ .., last] if !most.is_empty() => format!("{} and {last}", most.join(", ")),
        items => items.concat(),
    }
}
