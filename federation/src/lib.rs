#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

mod check;
mod contribution;
mod error;
mod report;
mod round;
mod state;
mod strategy;

pub use check::{RankPolicy, check};
pub use contribution::Contribution;
pub use error::{Error, Problem, RejectedContribution, Result, RoundError};
pub use report::{ClientReport, RoundReport};
pub use round::{Client, OnFailure, RoundObserver, RoundPlan, run_rounds};
pub use state::{STATE_FORMAT, STATE_VERSION, State};
pub use strategy::{Aggregate, Distance, Strategy, TargetRank, fedavg, product};
