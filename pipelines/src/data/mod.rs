//! What training learns from: a folder of captioned pictures becomes latents, embeddings and an order.
//!
//! | step | where |
//! |---|---|
//! | a file becomes upright RGB pixels, or a fault that names what is wrong | [`picture`] |
//! | pixels become the square (or other frame) that a model takes | [`frame`] |
//! | a folder becomes framed pictures with caption pairs; all bad pictures in one error | [`folder`] |
//! | frames become latents, and captions become embeddings, each once | [`latents`], [`embeddings`] |
//! | which pictures a step sees, as a function of (seed, step) | [`batch`] |

pub mod batch;
pub mod embeddings;
mod error;
pub mod folder;
pub mod frame;
mod jpeg;
pub mod latents;
pub mod picture;

pub use batch::Order;
pub use embeddings::Embeddings;
pub use error::{DataError, PictureFault};
pub use folder::{DataNotice, PictureOptions, TrainingPicture, TrainingPictures};
pub use frame::{Crop, Frame, Mirror, Resolution};
pub use latents::{EncodedFrame, LatentCache};
pub use picture::{Picture, PictureNotice};
