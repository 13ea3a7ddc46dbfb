//! The plan of a run: a strategy, and everything around it that clients and server agree on.

use catelier_adapters::Adapter;
use catelier_numerics::noise::{Noise, Stream};
use serde::{Deserialize, Serialize};

use crate::contribution::Contribution;
use crate::contributions::Contributions;
use crate::error::{Error, Problem, RejectedContribution, Result};
use crate::instructions::{Instructions, Start};
use crate::memory::Memory;
use crate::numbers::is_positive;
use crate::payload::Payload;
use crate::personal::Personal;
use crate::privacy::{NoiseAt, Privacy};
use crate::report::RoundReport;
use crate::source::InMemory;
use crate::state::State;
use crate::strategy::{Aggregate, Strategy};
use crate::weighting::Weighting;

/// Settings of a run.
///
/// What a file of a plan does not name has its default; `strategy` may be a name as in flags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoundPlan {
    /// The rule that aggregates contributions.
    #[serde(deserialize_with = "crate::strategy::by_name_or_settings")]
    pub strategy: Strategy,
    /// Number of rounds of the whole run, those already in the state included.
    pub rounds: usize,
    /// The reaction to a client that fails.
    pub on_failure: OnFailure,
    /// The clients of a round.
    pub participation: Participation,
    /// The weights of contributions.
    pub weighting: Weighting,
    /// A head that is each client's own.
    pub personal: Option<Personal>,
    /// Clipping and noise.
    pub privacy: Option<Privacy>,
    /// The factor `mu >= 0` of FedProx's term in the local loss; 0 for none.
    pub proximal: f64,
    /// Updates above this many medians of the norms are refused, from three contributions on; `None` for no such check.
    pub norm_factor: Option<f64>,
    /// Whether the server sees sums of contributions alone, so that what needs single ones is refused.
    pub secure_aggregation: bool,
}

/// The reaction to a client that fails, or whose contribution is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The run stops with the client's error.
    #[default]
    Stop,
    /// The round continues without the client, which takes part again in the next round. So it does without a
    /// contribution that cannot be aggregated.
    SkipClient,
}

/// The clients that take part in a round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Participation {
    /// All clients.
    #[default]
    All,
    /// `max(1, round(share * clients))` clients, drawn anew in every round.
    Drawn {
        /// Share of the clients, above 0 and at most 1.
        share: f64,
        /// Seed of the draws.
        seed: u64,
    },
}

const DRAWN: Stream = Stream("federation.participation");

impl Participation {
    /// Positions of the clients of a round among `clients`, ascending; a function of the seed and the round.
    pub fn of_round(&self, round: usize, clients: usize) -> Vec<usize> {
        let Self::Drawn { share, seed } = *self else { return (0..clients).collect() };
        let count = ((share * clients as f64).round() as usize).clamp(1, clients.max(1));
        let lots = Noise::new(seed).uniforms(DRAWN, round as u64, 0, clients);
        let mut order: Vec<usize> = (0..clients).collect();
        order.sort_by(|left, right| lots[*left].total_cmp(&lots[*right]).then(left.cmp(right)));
        order.truncate(count);
        order.sort_unstable();
        order
    }

    fn validate(&self) -> Result<()> {
        match *self {
            Self::Drawn { share, .. } if !(share > 0.0 && share <= 1.0) => {
                let expected = "above 0 and at most 1";
                Err(Error::Setting { what: "share of clients", expected, found: share })
            }
            _ => Ok(()),
        }
    }
}

impl Default for RoundPlan {
    /// One round of `product` with all clients, nothing else around it.
    fn default() -> Self {
        Self {
            strategy: Strategy::product(),
            rounds: 1,
            on_failure: OnFailure::default(),
            participation: Participation::default(),
            weighting: Weighting::default(),
            personal: None,
            privacy: None,
            proximal: 0.0,
            norm_factor: None,
            secure_aggregation: false,
        }
    }
}

impl RoundPlan {
    /// Refuses settings out of range, and combinations that cannot keep what they promise.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Target`], [`Error::Incompatible`].
    pub fn validate(&self) -> Result<()> {
        self.strategy.validate()?;
        self.participation.validate()?;
        self.privacy.map_or(Ok(()), |privacy| privacy.validate())?;
        if !(self.proximal.is_finite() && self.proximal >= 0.0) {
            let expected = "finite and 0 or more";
            return Err(Error::Setting { what: "factor of the proximal term", expected, found: self.proximal });
        }
        if let Some(found) = self.norm_factor.filter(|factor| !is_positive(*factor)) {
            return Err(Error::Setting { what: "factor of the largest norm", expected: "finite and above 0", found });
        }
        self.refuse_single_contributions()?;
        self.refuse_central_noise()
    }

    /// Under secure aggregation nobody sees a single contribution.
    fn refuse_single_contributions(&self) -> Result<()> {
        let outliers = self.norm_factor.map(|_| "norms of the single contributions are compared");
        match self.strategy.needs_single_contributions().or(outliers) {
            Some(reason) if self.secure_aggregation => {
                Err(Error::Incompatible { strategy: self.strategy.to_string(), other: "secure aggregation", reason })
            }
            _ => Ok(()),
        }
    }

    /// Central noise covers one client's part of a mean; of anything else, that part is not bounded by the clipping
    /// norm.
    fn refuse_central_noise(&self) -> Result<()> {
        if self.privacy.is_none_or(|privacy| privacy.at != NoiseAt::Server) {
            return Ok(());
        }
        let refused = |reason| {
            Err(Error::Incompatible { strategy: self.strategy.to_string(), other: "noise on the server", reason })
        };
        match self.strategy {
            Strategy::Fedavg | Strategy::Ffa | Strategy::Rolora | Strategy::Fedsa => match self.weighting {
                Weighting::Uniform => Ok(()),
                _ => refused("a client's part of the mean is bounded only if weights are uniform"),
            },
            _ => refused("its result is not the mean of the tensors that clients send"),
        }
    }

    /// What the server asks of the clients in a round, counted from 1.
    ///
    /// # Errors
    /// As [`validate`](Self::validate) and [`Strategy::configure`]; [`Error::NeedsStart`] for a head without a common
    /// start; [`Error::Head`].
    pub fn configure(&self, round: usize, state: &State) -> Result<Instructions> {
        self.validate()?;
        let mut instructions = self.strategy.configure(round, state)?;
        instructions.proximal = self.proximal;
        if let Some(personal) = &self.personal {
            let start = || Error::NeedsStart { strategy: format!("{} with a head", self.strategy) };
            personal.check(state.global().ok_or_else(start)?)?;
            instructions.roles = personal.roles(instructions.roles);
            instructions.phases = personal.phases();
        }
        Ok(instructions)
    }

    /// What leaves a client of a trained adapter: the shared tensors, clipped and noisy where the plan says so.
    ///
    /// # Errors
    /// All problems of what was about to leave, as the inner error; the outer one if a tensor cannot be read.
    pub fn leaving(
        &self,
        instructions: &Instructions,
        contribution: Contribution,
        global: Option<&Adapter>,
    ) -> Result<Result<Payload, Vec<Problem>>> {
        let Instructions { round, roles, .. } = instructions;
        let mut adapter = contribution.adapter;
        if let Some(privacy) = &self.privacy {
            // What started afresh has changed since zero, whatever the global adapter is.
            let start = global.filter(|_| instructions.start == Start::Global);
            adapter = privacy.protect(&adapter, start, roles, *round, &contribution.client)?;
        }
        instructions.filter().outgoing(&adapter, global)
    }

    /// The contribution of a client in this process as the server sees it: [what leaves](Self::leaving), and the other
    /// tensors from the global adapter. The head's modules are gone.
    ///
    /// # Errors
    /// As [`leaving`](Self::leaving).
    pub fn at_the_border(
        &self,
        instructions: &Instructions,
        contribution: Contribution,
        global: Option<&Adapter>,
    ) -> Result<Result<Contribution, Vec<Problem>>> {
        match self.leaving(instructions, contribution.clone(), global)? {
            Ok(payload) => Ok(Ok(Contribution { adapter: payload.complete(global)?, ..contribution })),
            Err(problems) => Ok(Err(problems)),
        }
    }

    /// The contributions of a round without those that [`aggregate`](Self::aggregate) would refuse, and those with all
    /// of their problems. What is left is checked again, since its consensus may be another.
    ///
    /// # Errors
    /// [`Error::Tensor`] and [`Error::Adapters`] if a tensor cannot be read.
    pub fn sift(&self, mut contributions: Vec<Contribution>) -> Result<(Vec<Contribution>, Vec<RejectedContribution>)> {
        let source = InMemory::new(&contributions);
        let (accepted, refused) = self.sift_from(&Contributions::read(&source)?);
        let mut stays = vec![false; contributions.len()];
        accepted.members().iter().for_each(|member| stays[member.position] = true);
        let mut stays = stays.into_iter();
        contributions.retain(|_| stays.next().unwrap_or(false));
        Ok((contributions, refused))
    }

    /// As [`sift`](Self::sift), of contributions that need not be in memory together. Their own weights stay.
    pub fn sift_from<'s>(&self, contributions: &Contributions<'s>) -> (Contributions<'s>, Vec<RejectedContribution>) {
        let (mut accepted, mut refused) = (contributions.clone(), Vec::new());
        loop {
            let rejected = self.rejections(&accepted);
            if rejected.is_empty() {
                return (accepted, refused);
            }
            accepted = accepted.without(&rejected);
            refused.extend(rejected);
        }
    }

    /// The contributions that [`aggregate_from`](Self::aggregate_from) would refuse, with all of their problems.
    pub fn rejections(&self, contributions: &Contributions<'_>) -> Vec<RejectedContribution> {
        contributions.weighted(&self.weighting).rejections(self.strategy.rank_policy(), self.norm_factor)
    }

    /// Checks the contributions of a round, counted from 1, as they passed [the border](Self::at_the_border), and
    /// aggregates them: the new global adapter with the head of the old one, and the strategy's memory.
    ///
    /// # Errors
    /// [`Error::Contributions`] names every contribution that fails, with all of its problems; the errors of
    /// [`Strategy::step`].
    pub fn aggregate(
        &self,
        round: usize,
        global: Option<&Adapter>,
        contributions: &[Contribution],
        memory: &Memory,
    ) -> Result<(Aggregate, Memory)> {
        self.validate()?;
        self.aggregate_from(round, global, &Contributions::read(&InMemory::new(contributions))?, memory)
    }

    /// As [`aggregate`](Self::aggregate), of contributions that need not be in memory together.
    ///
    /// # Errors
    /// As [`aggregate`](Self::aggregate), and those of the source.
    pub fn aggregate_from(
        &self,
        round: usize,
        global: Option<&Adapter>,
        contributions: &Contributions<'_>,
        memory: &Memory,
    ) -> Result<(Aggregate, Memory)> {
        self.validate()?;
        let rejected = self.rejections(contributions);
        if !rejected.is_empty() {
            return Err(Error::Contributions { total: contributions.len(), rejected });
        }
        let weighted = contributions.weighted(&self.weighting);
        let body = global.map(|global| self.personal.as_ref().map_or(global.clone(), |p| p.body_of(global)));
        let (mut aggregate, memory) = self.strategy.step_from(round, body.as_ref(), &weighted, memory)?;
        if let Some(privacy) = &self.privacy {
            let roles = self.strategy.roles(round);
            aggregate.adapter = privacy.cover(&aggregate.adapter, &roles, round, weighted.len())?;
        }
        if let (Some(personal), Some(global)) = (&self.personal, global) {
            for (module, update) in personal.head_of(global).iter() {
                aggregate.adapter.insert(module, update.clone());
            }
        }
        Ok((aggregate, memory))
    }

    /// Closes the round after those of `state`: aggregates the contributions, advances the state, and returns what was made
    /// of them. `failed` are the clients that failed or were refused, each with the reason.
    ///
    /// # Errors
    /// As [`aggregate_from`](Self::aggregate_from); the state stays as it was.
    pub fn close_round(
        &self,
        state: &mut State,
        contributions: &Contributions<'_>,
        failed: Vec<(String, String)>,
    ) -> Result<Aggregate> {
        let round = state.completed() + 1;
        let (aggregate, memory) = self.aggregate_from(round, state.global(), contributions, state.memory())?;
        let weighted = contributions.weighted(&self.weighting);
        let report = RoundReport::of(round, &weighted, failed, &aggregate, state.global())?;
        state.advance(aggregate.adapter.clone(), memory, report);
        Ok(aggregate)
    }
}
