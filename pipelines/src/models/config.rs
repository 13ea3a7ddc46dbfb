//! The three `config.json` files, read as diffusers and transformers write them.
//!
//! Keys that do not matter here are skipped. A key that would change the computation in a way these models do not
//! follow is refused by name, all such keys of a file together.

mod check;
mod text_encoder;
mod unet;
mod vae;

pub use text_encoder::{Activation, TextEncoderConfig};
pub use unet::{AddedEmbeddingConfig, TimestepConfig, UNetConfig, UNetLevel};
pub use vae::VaeConfig;

#[cfg(test)]
mod tests;
