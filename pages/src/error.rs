//! What can go wrong while a page is made.

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a page could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image could not be encoded.
    #[error("cannot encode image `{alt}` as PNG")]
    EncodeImage {
        /// The image's description.
        alt: String,
        /// The encoder's reason.
        #[source]
        source: image::ImageError,
    },
}
