#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

mod error;
pub mod export;
mod family;
mod geometry;
mod objects;
mod palette;
mod render;
mod rng;
mod scene;
mod settings;
mod styles;
mod textures;
mod vocabulary;

pub use error::{Error, Result};
pub use family::RandomStyle;
pub use palette::Rgb;
pub use render::Image;
pub use scene::{CANVAS, Ink, Role, Scene, Shape};
pub use styles::{Artist, Catalogue, DEFAULT_ARTIST};
pub use textures::texture;
pub use vocabulary::{Colour, Mention, Object, Setting, Triple};
