//! Whole folders on disk, and parity with the reference tokenizer.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

mod captions;
mod golden;
mod tokenizer_files;
