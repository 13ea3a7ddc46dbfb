//! Parity with the reference.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod golden;
