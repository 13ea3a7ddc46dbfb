//! Errors of pages.

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a page.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image could not be encoded.
    #[error("cannot encode image `{alt}` as PNG")]
    EncodeImage {
        /// The image's description.
        alt: String,
        /// The encoder's error.
        #[source]
        source: image::ImageError,
    },
}
