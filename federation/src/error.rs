//! Errors of a federation, with advice.

use std::fmt;
use std::path::PathBuf;

use catelier_adapters::UpdateKind;

use crate::check::LARGEST;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Number of rejected contributions that a message names before it counts the rest.
const SPELLED_OUT: usize = 3;

/// An error of aggregation or of a state file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A round without contributions has no mean.
    #[error("no contribution to aggregate")]
    NoContributions,
    /// Some contributions cannot be aggregated; all of them are listed.
    #[error("{} of {total} contributions cannot be aggregated: {}", rejected.len(), listed(rejected))]
    Contributions {
        /// Number of contributions.
        total: usize,
        /// The contributions that failed the check.
        rejected: Vec<RejectedContribution>,
    },
    /// The mean has values that are not finite or above the limit although no contribution has.
    #[error(
        "the mean of the contributions is too large: {problem}; the largest update is from `{client}`, norm {norm:.1e}"
    )]
    Overflow {
        /// Where the mean is too large.
        problem: Problem,
        /// The client with the largest update.
        client: String,
        /// Frobenius norm of its update.
        norm: f64,
    },
    /// A kind of adapter that the strategy cannot average.
    #[error(
        "`{strategy}` averages the updates of LoRA; `{module}` is a {kind}, whose update depends on the base's weights"
    )]
    UnsupportedKind {
        /// The strategy.
        strategy: &'static str,
        /// The first module of that kind.
        module: String,
        /// The kind.
        kind: UpdateKind,
    },
    /// A name that is not a strategy.
    #[error(
        "unknown strategy `{name}`: expected `fedavg` or `product`, with a rank as in `product:8` or `product:exact`"
    )]
    UnknownStrategy {
        /// The name.
        name: String,
    },
    /// A rank or alpha that the result cannot have.
    #[error("the result's {what} must be {expected}, found {found}")]
    Target {
        /// `rank` or `alpha`.
        what: &'static str,
        /// The rule.
        expected: String,
        /// The value.
        found: f64,
    },
    /// An operation on adapters failed.
    #[error("{what} failed")]
    Adapters {
        /// The operation.
        what: String,
        /// The cause.
        #[source]
        source: catelier_adapters::Error,
    },
    /// An operation on tensors failed.
    #[error("{what} failed")]
    Tensor {
        /// The operation.
        what: String,
        /// The tensor library's error.
        #[source]
        source: candle_core::Error,
    },
    /// Linear algebra or a state file failed.
    #[error("{what} failed")]
    Numerics {
        /// The operation.
        what: String,
        /// The cause.
        #[source]
        source: catelier_numerics::Error,
    },
    /// A file that is damaged, not a state of a federation, or a state of a later version.
    #[error("`{}` is not a usable federation state: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// A contribution that cannot be aggregated, with all of its problems.
#[derive(Debug, Clone, PartialEq)]
pub struct RejectedContribution {
    /// Name of the client.
    pub client: String,
    /// The problems; never empty.
    pub problems: Vec<Problem>,
}

/// A problem of one contribution; expected values are the consensus of all contributions.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// The client has no name.
    NoName,
    /// Another contribution has the same name.
    Duplicate,
    /// The weight is not a finite number above 0.
    Weight {
        /// The weight.
        weight: f64,
    },
    /// The adapter adapts nothing.
    Empty,
    /// The adapter was trained on another base model.
    Base {
        /// Fingerprint of most contributions.
        expected: String,
        /// Fingerprint of this one.
        found: String,
    },
    /// The adapter lacks modules that the others have.
    MissingModules {
        /// Number of modules.
        count: usize,
        /// The first module.
        first: String,
    },
    /// The adapter has modules that the others lack.
    UnknownModules {
        /// Number of modules.
        count: usize,
        /// The first module.
        first: String,
    },
    /// A module has another size.
    Shape {
        /// The module.
        module: String,
        /// Output and input shape in most contributions.
        expected: Vec<usize>,
        /// Output and input shape in this one.
        found: Vec<usize>,
    },
    /// A module has an update of another kind.
    Kind {
        /// The module.
        module: String,
        /// The kind in most contributions.
        expected: UpdateKind,
        /// The kind in this one.
        found: UpdateKind,
    },
    /// A module has another rank, and the strategy averages factors.
    Rank {
        /// The module.
        module: String,
        /// The rank in most contributions.
        expected: usize,
        /// The rank in this one.
        found: usize,
    },
    /// A module has another alpha, and the strategy averages factors.
    Alpha {
        /// The module.
        module: String,
        /// The alpha in most contributions.
        expected: f64,
        /// The alpha in this one.
        found: f64,
    },
    /// Modules with values that are NaN or infinite.
    NotFinite {
        /// Number of modules.
        count: usize,
        /// The first module.
        first: String,
    },
    /// A value is so large that images are not finite.
    LargeValue {
        /// Its magnitude.
        value: f64,
        /// Its module.
        module: String,
    },
    /// The update of the whole adapter is so large that images are not finite, although its values are not.
    TooLarge {
        /// Frobenius norm of the update.
        norm: f64,
        /// The module with the largest update.
        module: String,
    },
}

impl fmt::Display for RejectedContribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problems: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        write!(f, "`{}`: {}", self.client, problems.join(", "))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoName => f.write_str("the client has no name"),
            Self::Duplicate => f.write_str("another contribution has the same name"),
            Self::Weight { weight } => write!(f, "expected a finite weight above 0, found {weight}"),
            Self::Empty => f.write_str("the adapter has no modules"),
            Self::Base { expected, found } => write!(f, "expected base `{expected}`, found `{found}`"),
            Self::MissingModules { count, first } => write!(f, "{} missing, first `{first}`", modules(*count)),
            Self::UnknownModules { count, first } => {
                write!(f, "{} that the others lack, first `{first}`", modules(*count))
            }
            Self::Shape { module, expected, found } => {
                write!(f, "`{module}`: expected out and in {expected:?}, found {found:?}")
            }
            Self::Kind { module, expected, found } => {
                write!(f, "`{module}`: expected a {expected}, found a {found}")
            }
            Self::Rank { module, expected, found } => {
                write!(f, "`{module}`: expected rank {expected}, found {found}")
            }
            Self::Alpha { module, expected, found } => {
                write!(f, "`{module}`: expected alpha {expected}, found {found}")
            }
            Self::NotFinite { count, first } => {
                write!(f, "{} with values that are not finite, first `{first}`", modules(*count))
            }
            Self::TooLarge { norm, module } => {
                write!(f, "an update of norm {norm:.1e}, above the limit of {LARGEST:e}, largest in `{module}`")
            }
            Self::LargeValue { value, module } => {
                write!(f, "the value {value:.1e} in `{module}`, above the limit of {LARGEST:e}")
            }
        }
    }
}

fn modules(count: usize) -> String {
    if count == 1 { "1 module".to_owned() } else { format!("{count} modules") }
}

impl Error {
    pub(crate) fn adapters(what: &str) -> impl FnOnce(catelier_adapters::Error) -> Self {
        let what = what.to_owned();
        move |source| Self::Adapters { what, source }
    }

    pub(crate) fn tensor(what: &str) -> impl FnOnce(candle_core::Error) -> Self {
        let what = what.to_owned();
        move |source| Self::Tensor { what, source }
    }

    pub(crate) fn numerics(what: impl Into<String>) -> impl FnOnce(catelier_numerics::Error) -> Self {
        let what = what.into();
        move |source| Self::Numerics { what, source }
    }

    /// Advice on what to do next, where there is any.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Contributions { rejected, .. } => hint_for(rejected),
            Self::Overflow { client, .. } => {
                Some(format!("leave `{client}` out, or ask that client for a new contribution"))
            }
            Self::UnsupportedKind { .. } => Some("use the strategy `fedavg`, which averages the tensors".to_owned()),
            Self::Adapters { source, .. } => source.hint(),
            Self::Numerics { source, .. } => source.hint(),
            Self::State { .. } => Some("start the federation again in another folder".to_owned()),
            _ => None,
        }
    }
}

/// `product` accepts mixed ranks and alphas; no strategy accepts the other problems.
fn hint_for(rejected: &[RejectedContribution]) -> Option<String> {
    let mut problems = rejected.iter().flat_map(|contribution| &contribution.problems);
    let only_factors = problems.all(|problem| matches!(problem, Problem::Rank { .. } | Problem::Alpha { .. }));
    Some(if only_factors {
        "the strategy `product` accepts mixed ranks and alphas".to_owned()
    } else {
        "leave these contributions out, or ask their clients for new ones".to_owned()
    })
}

fn listed(rejected: &[RejectedContribution]) -> String {
    let shown: Vec<String> = rejected.iter().take(SPELLED_OUT).map(ToString::to_string).collect();
    match rejected.len().saturating_sub(SPELLED_OUT) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

/// An error that stops a run of rounds; `E` is the clients' own error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoundError<E: std::error::Error + 'static> {
    /// A run needs clients.
    #[error("no client takes part")]
    NoClients,
    /// A client could not train.
    #[error("client `{client}` failed in round {round}")]
    Client {
        /// Name of the client.
        client: String,
        /// The round, from 1.
        round: usize,
        /// The client's own error.
        #[source]
        source: E,
    },
    /// The contributions of a round could not be aggregated.
    #[error("round {round} cannot be aggregated")]
    Aggregate {
        /// The round, from 1.
        round: usize,
        /// The cause.
        #[source]
        source: Error,
    },
}

impl<E: std::error::Error + 'static> RoundError<E> {
    /// Advice on what to do next, where this crate has any.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Aggregate { source, .. } => source.hint(),
            Self::NoClients | Self::Client { .. } => None,
        }
    }
}
