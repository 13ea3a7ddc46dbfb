//! Tensor files: the safetensors format, read with all checks and written to the same bytes every time.
//!
//! **Source** <https://github.com/huggingface/safetensors>, "Format": eight bytes of header length (little endian), a
//! JSON header mapping names to `dtype`, `shape` and `data_offsets` (and `__metadata__` to a map of strings), then the
//! data without gaps.

mod closed;
mod digest;
mod element;
mod header;
mod json;
mod read;
mod write;

pub use closed::{ClosedFile, ReopenedFile, TensorPlace};
pub use digest::{CHECKSUM, Checksum, to_checked_bytes, write_checked};
pub use header::FileError;
pub use read::TensorFile;
pub use write::{to_bytes, write, write_to};

#[cfg(test)]
mod tests;
