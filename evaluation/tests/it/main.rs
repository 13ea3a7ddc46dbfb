//! Parity with the reference, whole evaluations and whole pages.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../examples/pages/drawing.rs"]
mod drawing;
mod pages;
mod scoring;
#[path = "../../examples/pages/story.rs"]
mod story;
mod world;
