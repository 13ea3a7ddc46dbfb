//! The three networks of Stable Diffusion: text encoders, UNet and autoencoder.
//!
//! All weights are frozen. Calls of the UNet and the text encoders take an
//! [`AdapterSet`](catelier_adapters::AdapterSet) as an argument; the empty set is the base model.

pub mod base;
mod checkpoint;
mod condition;
pub(crate) mod config;
pub mod files;
pub mod hub;
mod shapes;
mod slots;
mod text_encoder;
mod unet;
mod vae;

pub use checkpoint::Recompute;
pub use condition::{AddedCondition, Condition, ImageSizes};
pub use config::{
    Activation, AddedEmbeddingConfig, TextEncoderConfig, TimestepConfig, UNetConfig, UNetLevel, VaeConfig,
};
pub(crate) use shapes::{Conv2dShape, LinearShape};
pub use text_encoder::{TextEncoder, TextEncoders, TextOutput};
pub(crate) use text_encoder::{TextEncoderLayout, TextLayerLayout};
pub use unet::{CrossAttentionKv, Prefix, SharedPrefix, UNet, conditions_together};
pub(crate) use unet::{
    LayerLayout, LevelLayout, MlpLayout, ProjectionShape, ResnetLayout, TransformerBlockLayout, TransformerLayout,
    UNetLayout, keeps_wide,
};
pub(crate) use vae::{LEGACY_NAMES as VAE_LEGACY_NAMES, VaeLayout};
pub use vae::{Moments, Tiling, Vae, encoding_bytes};
