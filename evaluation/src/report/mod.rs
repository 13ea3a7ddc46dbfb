//! Pages that explain scores to people: one HTML file each, nothing loaded from anywhere.
//!
//! Pictures are embedded as PNG, curves as SVG, text is escaped by construction. The pages read on
//! a phone and on a desk, in light and dark, with and without eyesight. They only show: pictures
//! and numbers come from the caller.

pub mod chart;
mod demo_page;
mod evaluation_page;
mod number;
mod page;
mod picture;
mod score_table;
mod words;

pub use demo_page::{Command, Contender, Curve, DemoPage, DemoPrompt, Setting, TradeOff, TrainingCurves};
pub use evaluation_page::EvaluationPage;

/// What every page with pictures of the embedded base must say.
pub const EMBEDDED_BASE_NOTICE: &str = "These pictures come from the tiny model that is built into the program. It was made so that everything can be shown and tested in a minute without a download: it knows a handful of drawn things at 64 pixels. It is for demonstration and is not a model for artists' work.";
