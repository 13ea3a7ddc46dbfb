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
    #[error("unknown strategy `{name}`: expected `fedavg` or `product`, or one of {}", crate::strategy::others())]
    UnknownStrategy {
        /// The name.
        name: String,
    },
    /// A setting outside of its range.
    #[error("{what}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// The rule.
        expected: &'static str,
        /// The value.
        found: f64,
    },
    /// A strategy that moves on from a common start, without one.
    #[error("`{strategy}` goes on from a global adapter that all clients start from, and there is none")]
    NeedsStart {
        /// The strategy.
        strategy: String,
    },
    /// The global adapter has other modules or shapes than the contributions.
    #[error("`{module}` of the contributions does not fit the global adapter: expected {expected:?}, found {found:?}")]
    Global {
        /// The first module, or tensor, that differs.
        module: String,
        /// Shape in the global adapter; empty if it lacks the module.
        expected: Vec<usize>,
        /// Shape in the contributions.
        found: Vec<usize>,
    },
    /// What a strategy kept between rounds belongs to another federation.
    #[error("the state's memory `{name}` has {found} values, expected {expected}")]
    Memory {
        /// The name.
        name: String,
        /// Number of values that the strategy needs.
        expected: usize,
        /// Number of values that are kept.
        found: usize,
    },
    /// A personal tensor that a client should have at home.
    #[error("the client's own adapter lacks `{tensor}`, which is personal")]
    Home {
        /// The tensor, `<module>.<tensor>`.
        tensor: String,
    },
    /// Too few clients for what a robust rule promises.
    #[error("`{strategy}` needs {needed} contributions, found {found}")]
    TooFew {
        /// The strategy.
        strategy: String,
        /// The least number.
        needed: usize,
        /// The number of contributions.
        found: usize,
    },
    /// Two choices that do not go together.
    #[error("`{strategy}` cannot be combined with {other}: {reason}")]
    Incompatible {
        /// The strategy.
        strategy: String,
        /// The other choice.
        other: &'static str,
        /// The reason.
        reason: &'static str,
    },
    /// A head pattern that names no module, or all of them.
    #[error("the head `{head}` names {named} of {modules} modules, expected some and not all")]
    Head {
        /// The patterns.
        head: String,
        /// Modules that they name.
        named: usize,
        /// Modules of the adapter.
        modules: usize,
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
    /// A file of a round that is damaged, missing, of another kind or of a later version.
    #[error("`{}` is not usable: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
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
    /// The update's norm is far above those of the others.
    Outlier {
        /// Frobenius norm of the update.
        norm: f64,
        /// Median of the norms of all contributions.
        median: f64,
        /// The most medians that are accepted.
        factor: f64,
    },
    /// A tensor has an element type that cannot be averaged.
    ElementType {
        /// The module.
        module: String,
        /// The type.
        found: String,
    },
    /// A value is outside of the range that may leave.
    OutOfRange {
        /// The module.
        module: String,
        /// Largest magnitude that may leave.
        limit: f64,
        /// The largest magnitude.
        found: f64,
    },
    /// A rank is larger than may leave.
    LargeRank {
        /// The module.
        module: String,
        /// Largest rank that may leave.
        limit: usize,
        /// The rank.
        found: usize,
    },
    /// More bytes than may leave.
    Bytes {
        /// Most bytes.
        limit: usize,
        /// Bytes of all tensors.
        found: usize,
    },
    /// A tensor that should have stayed at the common start was changed.
    Moved {
        /// The tensor, `<module>.<tensor>`.
        tensor: String,
    },
    /// The file cannot be used at all.
    Unreadable {
        /// The reason.
        reason: String,
    },
    /// The contribution is of another round.
    OtherRound {
        /// The round that is closed.
        expected: usize,
        /// The round of the contribution.
        found: usize,
    },
    /// The contribution is of another client than the one that it was handed in for.
    OtherClient {
        /// The client in the file.
        found: String,
    },
    /// A tensor that should have stayed at home was sent.
    NotShared {
        /// The tensor, by the name that it was sent under.
        tensor: String,
    },
    /// A tensor that should have been sent is missing.
    MissingTensor {
        /// The tensor, `<module>.<tensor>`.
        tensor: String,
    },
    /// The tensors do not make an adapter.
    Parts {
        /// The reason.
        reason: String,
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
            Self::Outlier { norm, median, factor } => {
                write!(f, "an update of norm {norm:.1e}, above {factor} times the median of {median:.1e}")
            }
            Self::ElementType { module, found } => {
                write!(f, "`{module}`: expected floating-point values, found {found}")
            }
            Self::OutOfRange { module, limit, found } => {
                write!(f, "`{module}`: expected values up to {limit:.1e}, found {found:.1e}")
            }
            Self::LargeRank { module, limit, found } => {
                write!(f, "`{module}`: expected a rank up to {limit}, found {found}")
            }
            Self::Bytes { limit, found } => write!(f, "expected at most {limit} bytes, found {found}"),
            Self::NotShared { tensor } => write!(f, "`{tensor}` should have stayed at home"),
            Self::MissingTensor { tensor } => write!(f, "`{tensor}` is missing"),
            Self::Parts { reason } => write!(f, "the tensors make no adapter: {reason}"),
            Self::Moved { tensor } => write!(f, "`{tensor}` differs from the common start, at which it should stay"),
            Self::Unreadable { reason } => f.write_str(reason),
            Self::OtherRound { expected, found } => {
                write!(f, "expected a contribution of round {expected}, found {found}")
            }
            Self::OtherClient { found } => write!(f, "the contribution is that of `{found}`"),
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
            Self::NeedsStart { .. } => {
                Some("give the federation an adapter to start from, or use the strategy `product`".to_owned())
            }
            Self::Global { .. } => Some("train from the global adapter of this round, at its rank".to_owned()),
            Self::Memory { .. } => Some("use the state that this strategy saved, or start again".to_owned()),
            Self::Home { .. } => Some("restore the client's own adapter of its last round".to_owned()),
            Self::TooFew { .. } => Some("wait for more clients, or tolerate fewer poisoned ones".to_owned()),
            Self::Incompatible { .. } => {
                Some("choose a strategy that is linear in what clients send, such as `ffa`".to_owned())
            }
            Self::Head { .. } => Some("name the head's modules by their ends, such as `up_blocks.3.*`".to_owned()),
            Self::File { .. } => Some("fetch the file again, or ask its sender for another".to_owned()),
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
    /// A client that cannot do what the strategy needs of it.
    #[error("client `{client}` cannot train as `{strategy}` needs it")]
    CannotFollow {
        /// Name of the client.
        client: String,
        /// The strategy.
        strategy: String,
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
            Self::CannotFollow { .. } => {
                Some("use the strategy `product` or `fedavg`, which any client can follow".to_owned())
            }
            Self::NoClients | Self::Client { .. } => None,
        }
    }
}
