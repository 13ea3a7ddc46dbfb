//! Laws of aggregation, the check, and whole runs of rounds.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

mod adapters;
mod checks;
mod ewwa;
mod files;
mod laws;
mod plans;
mod privacy;
mod robust;
mod rounds;
mod strategies;
mod streaming;
mod whole_models;
