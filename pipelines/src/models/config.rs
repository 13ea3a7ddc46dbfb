//! The `config.json` files of the three networks, as diffusers and transformers write them.
//!
//! Each file has a table of the keys that its library knows. The table bounds every number, so that nothing is allocated
//! for an absurd one, and lists the values of keys that change results; keys that do not change them are skipped. One
//! error names all keys of a file with other values, and says what is supported.

pub(crate) mod check;
mod text_encoder;
mod unet;
mod vae;

pub use text_encoder::{Activation, TextEncoderConfig};
pub use unet::{AddedEmbeddingConfig, TimestepConfig, UNetConfig, UNetLevel};
pub use vae::VaeConfig;

#[cfg(test)]
mod tests;
