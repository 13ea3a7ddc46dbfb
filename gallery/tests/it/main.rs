//! The gallery from outside: determinism, exports and the look that the embedded model was trained on.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

mod export;
mod golden;
mod scenes;
