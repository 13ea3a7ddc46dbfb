//! Adapter files against the reference files of diffusers and PEFT, and laws.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

mod base;
mod files;
mod golden;
mod laws;
