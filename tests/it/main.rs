//! The command from the outside: the real binary, its stdout, stderr and exit code.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and writes half files on purpose"
)]

mod adapters;
mod arrows;
mod audit;
mod bad_input;
mod base;
mod bench;
mod catelier;
mod clients;
mod crash;
mod demo;
mod dependencies;
mod evaluate;
mod federate;
mod folders;
mod hostile;
mod hub;
mod metadata;
mod plan;
mod preview;
mod rounds;
mod same_bytes;
mod stop;
mod streams;
mod style;
mod train;
