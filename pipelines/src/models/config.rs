//! The `config.json` files of the three networks, as diffusers and transformers write them.
//!
//! Keys that do not change the computation are skipped. A key that asks for a computation that these models do not
//! implement is refused by name; one error names all such keys of a file.

mod check;
mod text_encoder;
mod unet;
mod vae;

pub use text_encoder::{Activation, TextEncoderConfig};
pub use unet::{AddedEmbeddingConfig, TimestepConfig, UNetConfig, UNetLevel};
pub use vae::VaeConfig;

#[cfg(test)]
mod tests;
