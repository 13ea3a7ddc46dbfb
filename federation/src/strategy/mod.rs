//! Strategies: rules that aggregate many adapters into one.
//!
//! Each rule is a pure function of the contributions, the round, the global adapter and its own memory, in a file by
//! family. A new one needs such a function, a variant of [`Strategy`] and its name in `name.rs`; rounds need no change.

mod aggregate;
mod dense;
mod ewwa;
mod fair;
mod fedavg;
mod fedrot;
mod mixed_ranks;
mod name;
mod one_factor;
mod product;
mod robust;
mod server_optimizer;
mod stacking;
mod whole_model;

use std::collections::BTreeMap;

use catelier_adapters::Adapter;
use serde::{Deserialize, Serialize};

pub use aggregate::{Aggregate, Distance};
pub use ewwa::{ContributionSign, Ewwa, EwwaForm, Moments, NamedTensors, Placement, ewwa};
pub use fair::fair;
pub use fedavg::fedavg;
pub use fedrot::fedrot;
pub use mixed_ranks::{hetlora, leading_slices, raflora};
pub(crate) use name::{by_name_or_settings, others};
pub use product::product;
pub use robust::{geometric_median, krum, median, norm_bound, trimmed_mean};
pub use server_optimizer::{ServerOptimizer, server_optimizer};
pub use stacking::{WithResidual, fedex, flora};
pub use whole_model::ModelReply;

use self::one_factor::{Factor, alternating, one_factor};
use crate::check::RankPolicy;
use crate::contribution::Contribution;
use crate::contributions::Contributions;
use crate::error::{Error, Result};
use crate::instructions::{Instructions, Start};
use crate::memory::Memory;
use crate::roles::{Role, Roles};
use crate::source::{InMemory, ModuleHeader};
use crate::state::State;

/// The rule that aggregates the contributions of a round.
///
/// In text: `fedavg`, `product` (the largest rank of the contributions), `product:8` (rank 8), `product:exact` (the sum
/// of ranks, which loses nothing), and the other names of [`Strategy::NAMES`], some with a setting after a colon. The
/// names in the papers are accepted too: `fedit` is `fedavg`, `flexlora` is `product`, and so on.
///
/// ```
/// # use catelier_federation::{Strategy, TargetRank};
/// let strategy: Strategy = "product:8".parse().unwrap();
/// assert_eq!(strategy, Strategy::Product { rank: TargetRank::Fixed(8), alpha: None });
/// assert_eq!("flexlora:8".parse::<Strategy>().unwrap(), strategy);
/// assert_eq!("krum:2".parse::<Strategy>().unwrap(), Strategy::Krum { poisoned: 2 });
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Weighted means of `down` and of `up` separately: see [`fedavg()`].
    #[serde(alias = "fedit")]
    Fedavg,
    /// Weighted mean of the updates, cut to a rank: see [`product()`].
    #[serde(alias = "flexlora")]
    Product {
        /// Rank of the result.
        rank: TargetRank,
        /// Alpha of the result; `None` for the alpha that makes the result's scale the mean of the clients' scales.
        alpha: Option<f64>,
    },
    /// Mean of `up` beside a frozen common `down` (FFA-LoRA, arXiv 2403.12313). Exact; half of the traffic.
    Ffa,
    /// Mean of `up` in odd rounds and of `down` in even ones, the other frozen (RoLoRA, arXiv 2502.01755). Exact.
    Rolora,
    /// Mean of `down`; every client keeps its `up` (FedSA-LoRA, arXiv 2410.01463). The global `up` is the common start.
    Fedsa,
    /// Stacked factors: see [`flora()`].
    Flora,
    /// Means of the factors and their residual: see [`fedex()`].
    Fedex,
    /// Mean of `down` and a corrected `up`: see [`fair()`].
    Fair {
        /// See [`fair()`].
        ridge: f64,
    },
    /// Means of rotated factors: see [`fedrot()`].
    Fedrot {
        /// See [`fedrot()`].
        softness: f64,
    },
    /// Factors of mixed ranks, padded with zeros: see [`hetlora()`].
    Hetlora,
    /// Factors of mixed ranks, averaged by rank slice: see [`raflora()`].
    Raflora,
    /// A weight for every element: see [`Ewwa::step`].
    Ewwa {
        /// The rule.
        settings: Ewwa,
        /// The tensors that it acts on.
        placement: Placement,
    },
    /// An adaptive optimizer on the server: see [`server_optimizer()`].
    ServerOptimizer(ServerOptimizer),
    /// The median of every element of the updates: see [`median()`].
    Median {
        /// Rank of the result.
        rank: TargetRank,
    },
    /// The mean without the extremes of every element: see [`trimmed_mean()`].
    TrimmedMean {
        /// Share that is dropped at each end.
        cut: f64,
        /// Rank of the result.
        rank: TargetRank,
    },
    /// The mean of the updates that agree most: see [`krum()`].
    Krum {
        /// Number of poisoned contributions that are tolerated.
        poisoned: usize,
    },
    /// The geometric median of the updates: see [`geometric_median()`].
    GeometricMedian,
    /// The mean of shortened updates: see [`norm_bound()`].
    NormBound {
        /// Largest norm in units of the median.
        factor: f64,
    },
}

/// The rank of a result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetRank {
    /// The largest rank among the contributions, module by module.
    #[default]
    Largest,
    /// This rank, 1 or more.
    Fixed(usize),
    /// The sum of ranks, at most the size of the module: nothing is cut off.
    Exact,
}

impl TargetRank {
    /// The rank, if the largest of the contributions and the one that loses nothing are these.
    fn of(self, largest: usize, exact: usize) -> usize {
        match self {
            Self::Largest => largest,
            Self::Fixed(rank) => rank,
            Self::Exact => exact,
        }
    }
}

/// Name of the residual of `fedex` in the memory.
const RESIDUAL: &str = "residual";

impl Strategy {
    /// `product` at the largest rank of the contributions.
    pub fn product() -> Self {
        Self::Product { rank: TargetRank::default(), alpha: None }
    }

    /// EWWA-FL as published, with Adam, on `up` beside a common `down`.
    pub fn ewwa() -> Self {
        Self::Ewwa { settings: Ewwa::default(), placement: Placement::default() }
    }

    /// Whether ranks and alphas may differ between clients.
    pub fn rank_policy(&self) -> RankPolicy {
        match self {
            Self::Fedavg | Self::Ffa | Self::Rolora | Self::Fedsa | Self::Fedex => RankPolicy::Uniform,
            Self::Fair { .. } | Self::Fedrot { .. } | Self::ServerOptimizer(_) => RankPolicy::Uniform,
            Self::Ewwa { placement: Placement::Up | Placement::Factors, .. } => RankPolicy::Uniform,
            Self::Ewwa { placement: Placement::Product, .. } => RankPolicy::Mixed,
            Self::Product { .. } | Self::Flora | Self::Hetlora | Self::Raflora => RankPolicy::Mixed,
            Self::Median { .. } | Self::TrimmedMean { .. } | Self::Krum { .. } => RankPolicy::Mixed,
            Self::GeometricMedian | Self::NormBound { .. } => RankPolicy::Mixed,
        }
    }

    /// Whether the rule goes on from a global adapter that all clients start from. [`Strategy::aggregate`] refuses it.
    pub fn needs_start(&self) -> bool {
        matches!(self, Self::Ewwa { .. } | Self::ServerOptimizer(_)) || self.roles(1).need_start()
    }

    /// Whether any client can follow the rule: it trains all tensors from the global adapter, or from a fresh one in
    /// the first round, and sends them all. The others hold or keep a part, merge updates into the base, or need a
    /// start.
    pub fn is_plain(&self) -> bool {
        !self.needs_start() && !self.merges()
    }

    /// Whether clients merge updates into their base.
    fn merges(&self) -> bool {
        matches!(self, Self::Flora | Self::Fedex)
    }

    /// Why the rule cannot work where the server sees sums alone (secure aggregation); `None` if it can.
    pub fn needs_single_contributions(&self) -> Option<&'static str> {
        match self {
            Self::Fedavg | Self::Ffa | Self::Rolora | Self::Fedsa | Self::ServerOptimizer(_) => None,
            Self::Ewwa { .. } => Some("every element's weights depend on the single contributions"),
            Self::Hetlora => Some("the weights are norms of the single contributions"),
            Self::Raflora => Some("each rank slice is averaged over the clients that have it"),
            Self::Fedrot { .. } => Some("every contribution is rotated by itself"),
            Self::Product { .. } | Self::Flora | Self::Fedex | Self::Fair { .. } => {
                Some("the mean of the updates is made from the factors of the single contributions")
            }
            _ => Some("contributions are compared with each other"),
        }
    }

    /// Refuses a setting that no result can have.
    ///
    /// # Errors
    /// [`Error::Target`], [`Error::Setting`].
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Product { rank, alpha } => product::refuse_targets(*rank, *alpha),
            Self::Median { rank } => product::refuse_targets(*rank, None),
            Self::TrimmedMean { cut, rank } => {
                robust::refuse_cut(*cut)?;
                product::refuse_targets(*rank, None)
            }
            Self::Fair { ridge } => fair::refuse_ridge(*ridge),
            Self::Fedrot { softness } => fedrot::refuse_softness(*softness),
            Self::Ewwa { settings, .. } => settings.validate(),
            Self::ServerOptimizer(settings) => settings.validate(),
            Self::NormBound { factor } => robust::refuse_factor(*factor),
            _ => Ok(()),
        }
    }

    /// What becomes of each tensor in a round, counted from 1.
    pub(crate) fn roles(&self, round: usize) -> Roles {
        match self {
            Self::Ffa | Self::Ewwa { placement: Placement::Up, .. } => one_factor::roles(Factor::Up, Role::Frozen),
            Self::Rolora => one_factor::roles(alternating(round), Role::Frozen),
            Self::Fedsa => one_factor::roles(Factor::Down, Role::Personal),
            _ => Roles::shared(),
        }
    }

    /// What the server asks of the clients in a round, counted from 1.
    ///
    /// # Errors
    /// [`Error::NeedsStart`] if the state has no global adapter and the rule needs one; those of
    /// [`validate`](Self::validate); [`Error::Memory`] for a memory of another federation.
    pub fn configure(&self, round: usize, state: &State) -> Result<Instructions> {
        self.validate()?;
        if self.needs_start() {
            self.start(state.global())?;
        }
        let (roles, merges) = (self.roles(round), self.merges());
        let mut instructions = Instructions { round, roles, merges, ..Instructions::default() };
        match (self, state.global()) {
            (Self::Flora, Some(global)) => {
                (instructions.start, instructions.merged) = (Start::Fresh, Some(global.clone()));
            }
            (Self::Fedex, Some(global)) => instructions.merged = state.memory().adapter(RESIDUAL, global)?,
            _ => {}
        }
        Ok(instructions)
    }

    /// Checks the contributions and aggregates them by themselves: no global adapter, no earlier rounds. The result of
    /// `fedex` has the residual in it.
    ///
    /// # Errors
    /// [`Error::NoContributions`]; [`Error::Contributions`] names every contribution that fails the
    /// check; [`Error::Target`] and [`Error::Setting`] for an impossible setting; [`Error::Overflow`] for a mean that
    /// is not finite or above the limit; [`Error::NeedsStart`].
    pub fn aggregate(&self, contributions: &[Contribution]) -> Result<Aggregate> {
        self.aggregate_from(&Contributions::read(&InMemory::new(contributions))?)
    }

    /// As [`aggregate`](Self::aggregate), of contributions that need not be in memory together.
    ///
    /// # Errors
    /// As [`aggregate`](Self::aggregate), and those of the source.
    pub fn aggregate_from(&self, contributions: &Contributions<'_>) -> Result<Aggregate> {
        match self {
            Self::Fedex => Aggregate::measured(fedex(contributions)?.whole()?, contributions),
            _ => Ok(self.step_from(1, None, contributions, &Memory::new())?.0),
        }
    }

    /// Checks the contributions of a round and aggregates them: the new global adapter, and what the rule keeps for the
    /// next round. Nothing else decides the result, so a repeated call gives the same bits.
    ///
    /// # Errors
    /// As [`aggregate`](Self::aggregate), with [`Error::NeedsStart`] only where `global` is `None`; [`Error::Global`]
    /// for contributions that do not fit `global`; [`Error::Memory`] for a memory of another federation.
    pub fn step(
        &self,
        round: usize,
        global: Option<&Adapter>,
        contributions: &[Contribution],
        memory: &Memory,
    ) -> Result<(Aggregate, Memory)> {
        self.step_from(round, global, &Contributions::read(&InMemory::new(contributions))?, memory)
    }

    /// As [`step`](Self::step), of contributions that need not be in memory together.
    ///
    /// # Errors
    /// As [`step`](Self::step), and those of the source.
    pub fn step_from(
        &self,
        round: usize,
        global: Option<&Adapter>,
        contributions: &Contributions<'_>,
        memory: &Memory,
    ) -> Result<(Aggregate, Memory)> {
        self.validate()?;
        let aggregate = match self {
            Self::Fedavg => fedavg(contributions),
            Self::Product { rank, alpha } => product(contributions, *rank, *alpha),
            Self::Ffa => one_factor(contributions, self.start(global)?, Factor::Up),
            Self::Rolora => one_factor(contributions, self.start(global)?, alternating(round)),
            Self::Fedsa => one_factor(contributions, self.start(global)?, Factor::Down),
            Self::Flora => flora(contributions, global),
            Self::Fair { ridge } => fair(contributions, *ridge),
            Self::Fedrot { softness } => fedrot(contributions, round, global, *softness),
            Self::Hetlora => hetlora(contributions),
            Self::Raflora => raflora(contributions),
            Self::Median { rank } => median(contributions, *rank),
            Self::TrimmedMean { cut, rank } => trimmed_mean(contributions, *cut, *rank),
            Self::Krum { poisoned } => krum(contributions, *poisoned),
            Self::GeometricMedian => geometric_median(contributions),
            Self::NormBound { factor } => norm_bound(contributions, *factor),
            // Rules that keep a memory.
            Self::Fedex => return fedex_step(contributions, memory),
            Self::Ewwa { settings, placement } => {
                return ewwa(contributions, self.start(global)?, *settings, *placement, memory);
            }
            Self::ServerOptimizer(settings) => {
                return server_optimizer(contributions, self.start(global)?, *settings, memory);
            }
        };
        Ok((aggregate?, Memory::new()))
    }

    fn start<'g>(&self, global: Option<&'g Adapter>) -> Result<&'g Adapter> {
        global.ok_or_else(|| Error::NeedsStart { strategy: self.to_string() })
    }
}

/// A round of `fedex`: the residual joins those of earlier rounds. The distance is that of the factors and this round's
/// residual.
fn fedex_step(contributions: &Contributions<'_>, memory: &Memory) -> Result<(Aggregate, Memory)> {
    let result = fedex(contributions)?;
    let measured = Aggregate::measured(result.whole()?, contributions)?;
    let mut memory = memory.clone();
    let residual = match memory.adapter(RESIDUAL, &result.adapter)? {
        None => result.residual,
        Some(earlier) => {
            let sum = catelier_adapters::sum(&[(&earlier, 1.0), (&result.residual, 1.0)]);
            stacking::compact(&sum.map_err(Error::adapters("adding residuals"))?)?
        }
    };
    memory.set_adapter(RESIDUAL, &residual);
    Ok((Aggregate { adapter: result.adapter, ..measured }, memory))
}

/// Refuses contributions whose tensors do not have the shapes of the global adapter.
fn fitting(global: &Adapter, contributions: &Contributions<'_>) -> Result<()> {
    type Shapes = BTreeMap<String, Vec<usize>>;
    let shapes_of = |(module, header): (&str, &ModuleHeader)| -> Vec<(String, Vec<usize>)> {
        header.tensors.iter().map(|(name, _, shape)| (format!("{module}.{name}"), shape.clone())).collect()
    };
    let expected: Shapes =
        global.iter().flat_map(|(module, update)| shapes_of((module, &ModuleHeader::of(update)))).collect();
    let first = contributions.iter().next().map(|(header, ..)| header);
    let modules = first.into_iter().flat_map(|header| header.modules.iter());
    let found: Shapes = modules.flat_map(|(module, header)| shapes_of((module, header))).collect();
    let other = |name: &&String| expected.get(*name) != found.get(*name);
    let Some(name) = expected.keys().chain(found.keys()).find(other) else { return Ok(()) };
    let shape = |shapes: &Shapes| shapes.get(name).cloned().unwrap_or_default();
    Err(Error::Global { module: name.clone(), expected: shape(&expected), found: shape(&found) })
}
