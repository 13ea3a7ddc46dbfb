#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

mod dice;
mod error;
pub mod export;
mod geometry;
mod hands;
mod objects;
mod palette;
mod picture;
mod scene;
mod settings;
mod textures;
mod vocabulary;

pub use error::{Error, Result};
pub use hands::{Artist, Catalogue, DEFAULT_ARTIST};
pub use palette::Rgb;
pub use picture::Picture;
pub use scene::{CANVAS, Ink, Role, Scene, Shape};
pub use textures::texture;
pub use vocabulary::{Colour, Object, Setting, Triple};
