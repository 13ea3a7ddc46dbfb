//! What can go wrong in a federation, and what to do about it.

use std::fmt;
use std::path::PathBuf;

use catelier_adapters::UpdateKind;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How many offenders a message spells out before it counts the rest.
const SPELLED_OUT: usize = 3;

/// Everything that can go wrong when adapters are aggregated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A round without contributions has no mean.
    #[error("no contribution to aggregate")]
    NoContributions,
    /// Some contributions cannot take part; all of them are listed.
    #[error("{} of {total} contributions cannot be aggregated: {}", offenders.len(), listed(offenders))]
    Contributions {
        /// How many were handed in.
        total: usize,
        /// Those that cannot take part.
        offenders: Vec<Offender>,
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
        /// What was asked for.
        name: String,
    },
    /// A rank or alpha that the result cannot have.
    #[error("the result's {what} must be {expected}, found {found}")]
    Target {
        /// `rank` or `alpha`.
        what: &'static str,
        /// The rule.
        expected: &'static str,
        /// What was asked for.
        found: f64,
    },
    /// An operation on adapters failed.
    #[error("{what} failed")]
    Adapters {
        /// What was being done.
        what: String,
        /// The cause.
        #[source]
        source: catelier_adapters::Error,
    },
    /// An operation on tensors failed.
    #[error("{what} failed")]
    Tensor {
        /// What was being done.
        what: String,
        /// What the tensor library says.
        #[source]
        source: candle_core::Error,
    },
    /// Linear algebra or a state file failed.
    #[error("{what} failed")]
    Numerics {
        /// What was being done.
        what: String,
        /// The cause.
        #[source]
        source: catelier_numerics::Error,
    },
    /// A state file that is not one, or of a later version.
    #[error("`{}` is not a usable federation state: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A contribution that cannot take part, with everything that is wrong with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Offender {
    /// Name of the client.
    pub client: String,
    /// What is wrong; never empty.
    pub offences: Vec<Offence>,
}

/// One thing that is wrong with a contribution, measured against what most others are.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Offence {
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
    /// It was trained on another base model.
    Base {
        /// Fingerprint that most have.
        expected: String,
        /// Its own.
        found: String,
    },
    /// It lacks modules.
    MissingModules {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// It has modules that the others lack.
    UnknownModules {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// A module has another size.
    Shape {
        /// The module.
        module: String,
        /// Output and input shape that most have.
        expected: Vec<usize>,
        /// Its own.
        found: Vec<usize>,
    },
    /// A module has an update of another kind.
    Kind {
        /// The module.
        module: String,
        /// The kind that most have.
        expected: UpdateKind,
        /// Its own.
        found: UpdateKind,
    },
    /// A module has another rank, and the strategy averages factors.
    Rank {
        /// The module.
        module: String,
        /// The rank that most have.
        expected: usize,
        /// Its own.
        found: usize,
    },
    /// A module has another alpha, and the strategy averages factors.
    Alpha {
        /// The module.
        module: String,
        /// The alpha that most have.
        expected: f64,
        /// Its own.
        found: f64,
    },
    /// Factors that are NaN or infinite.
    NotFinite {
        /// How many modules.
        count: usize,
        /// The first of them.
        first: String,
    },
}

impl fmt::Display for Offender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offences: Vec<String> = self.offences.iter().map(ToString::to_string).collect();
        write!(f, "`{}`: {}", self.client, offences.join(", "))
    }
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoName => f.write_str("the client has no name"),
            Self::Duplicate => f.write_str("another contribution has the same name"),
            Self::Weight { weight } => write!(f, "expected a finite weight above 0, found {weight}"),
            Self::Empty => f.write_str("the adapter has no modules"),
            Self::Base { expected, found } => write!(f, "expected base `{expected}`, found `{found}`"),
            Self::MissingModules { count, first } => write!(f, "{count} modules missing, first `{first}`"),
            Self::UnknownModules { count, first } => {
                write!(f, "{count} modules that the others lack, first `{first}`")
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
                write!(f, "{count} modules with values that are not finite, first `{first}`")
            }
        }
    }
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

    /// What to do next, where something can be done.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Contributions { offenders, .. } => hint_for(offenders),
            Self::UnsupportedKind { .. } => Some("use the strategy `fedavg`, which averages the tensors".to_owned()),
            Self::Adapters { source, .. } => source.hint(),
            Self::Numerics { source, .. } => source.hint(),
            _ => None,
        }
    }
}

/// Mixed ranks and alphas have a strategy; anything else has to be left out.
fn hint_for(offenders: &[Offender]) -> Option<String> {
    let mut offences = offenders.iter().flat_map(|offender| &offender.offences);
    let only_factors = offences.all(|offence| matches!(offence, Offence::Rank { .. } | Offence::Alpha { .. }));
    Some(if only_factors {
        "the strategy `product` accepts mixed ranks and alphas".to_owned()
    } else {
        "leave these contributions out, or ask their clients for new ones".to_owned()
    })
}

fn listed(offenders: &[Offender]) -> String {
    let shown: Vec<String> = offenders.iter().take(SPELLED_OUT).map(ToString::to_string).collect();
    match offenders.len().saturating_sub(SPELLED_OUT) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

/// What can stop a run of rounds; `E` is the clients' own error.
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
    /// What to do next, where this crate knows it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Aggregate { source, .. } => source.hint(),
            Self::NoClients | Self::Client { .. } => None,
        }
    }
}
