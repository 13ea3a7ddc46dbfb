//! Training data: a folder of captioned images becomes latents, embeddings and an order.
//!
//! | step | where |
//! |---|---|
//! | a file becomes upright RGB pixels, or a fault that names what is wrong | [`decode`] |
//! | pixels become the square (or other frame) that a model takes | [`frame`] |
//! | a folder becomes framed images with caption pairs; all bad images in one error | [`folder`] |
//! | frames become latents, and captions become embeddings, each once | [`latents`], [`embeddings`] |
//! | which images a step sees, as a function of (seed, step) | [`batch`] |

pub mod batch;
pub mod decode;
pub mod embeddings;
mod error;
pub mod folder;
pub mod frame;
mod jpeg;
pub mod latents;

pub use batch::Order;
pub use decode::{DecodedImage, ImageNotice};
pub use embeddings::Embeddings;
pub use error::{DataError, ImageFault};
pub use folder::{DataNotice, ImageOptions, TrainingImage, TrainingImages};
pub use frame::{Crop, Frame, Mirror, Resolution};
pub use latents::{EncodedFrame, LatentCache};
