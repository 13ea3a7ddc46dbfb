#![doc = include_str!("../README.md")]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::disallowed_methods,
        reason = "a test may panic, and writes half files on purpose"
    )
)]

mod accountant;
mod arrival;
mod check;
mod contribution;
mod contributions;
mod error;
mod files;
mod instructions;
mod memory;
mod numbers;
mod payload;
mod personal;
mod plan;
mod privacy;
mod report;
mod roles;
mod round;
mod source;
mod state;
mod stored;
mod strategy;
mod weighting;

pub use accountant::Accountant;
pub use check::{RankPolicy, check, rejections};
pub use contribution::Contribution;
pub use contributions::Contributions;
pub use error::{Error, Problem, RejectedContribution, Result, RoundError};
pub use files::{CONTRIBUTION_FORMAT, ClientRound, SentContribution};
pub use instructions::{Instructions, Phase, Start, proximal_term};
pub use memory::Memory;
pub use payload::{Payload, ShareFilter};
pub use personal::{HeadRule, Personal};
pub use plan::{OnFailure, Participation, RoundPlan};
pub use privacy::{NoiseAt, Privacy};
pub use report::{ClientReport, RoundReport};
pub use roles::{Role, Roles};
pub use round::{Client, RoundObserver, run_rounds};
pub use source::{ContributionHeader, ContributionSource, InMemory, ModuleHeader};
pub use state::{STATE_FORMAT, STATE_VERSION, State};
pub use stored::{SentHeader, StoredContribution, StoredContributions};
pub use strategy::{
    Aggregate, ContributionSign, Distance, Ewwa, EwwaForm, ModelReply, Moments, NamedTensors, Placement,
    ServerOptimizer, Strategy, TargetRank, WithResidual, ewwa, fair, fedavg, fedex, fedrot, flora, geometric_median,
    hetlora, krum, leading_slices, median, norm_bound, product, raflora, server_optimizer, trimmed_mean,
};
pub use weighting::Weighting;
