//! Rounds from the outside, in memory, in folders and, where a server is there, in a bucket.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

mod faults;
mod faulty;
mod kills;
mod places;
mod rounds;
mod s3;
mod scale;
mod world;
