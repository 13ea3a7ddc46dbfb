//! Golden tensors, tolerances, finite differences and counted memory for the tests of every room.
//!
//! A development dependency only: everything here panics on trouble, with a sentence that says
//! which tensor, where, and by how much.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

pub mod allocations;
pub mod close;
pub mod finite_difference;
pub mod golden;
pub mod thread_memory;
pub mod tolerance;
