//! Adapter files of several contributors, combined into one: by themselves, or as a round of a federation.

pub(crate) mod metadata;
mod open;
mod plan;
mod state;

use std::path::PathBuf;

use catelier_adapters::ModuleInfo;
use catelier_adapters::file::{self, Format};
use catelier_federation::{
    Aggregate, ClientRound, Contributions, Error as FederationError, OnFailure, RejectedContribution, RoundPlan, State,
    Strategy,
};
use serde::Serialize;

pub use metadata::{CONTRIBUTORS_ENTRY, Contributor};
pub use open::Reply;

use self::open::{Opened, Opener};
use self::state::StateFolder;
use crate::adapter::{AdapterSource, warn_of_changes};
use crate::base::{BaseSource, EMBEDDED};
use crate::error::{Context, Error, Result, user_error};
use crate::event::ArtefactKind;
use crate::output::{self, OutputFolder};
use crate::session::Session;

const COMMAND: &str = "federate aggregate";

/// An aggregation as it is asked for.
#[derive(Debug, Clone)]
pub struct AggregateRequest {
    /// The adapters and their weights; at least two, or none beside `replies`.
    pub adapters: Vec<AdapterSource>,
    /// A JSON file with a list of [`Reply`]s.
    pub replies: Option<PathBuf>,
    /// How they become one; not used beside `plan`.
    pub strategy: Strategy,
    /// Rank of the result; `None` leaves it to the strategy.
    pub rank: Option<usize>,
    /// A [`RoundPlan`] as TOML, or as JSON where the name ends in `.json`.
    pub plan: Option<PathBuf>,
    /// The global adapter before the first round that all clients started from.
    pub start: Option<PathBuf>,
    /// The round, from 1; 0 makes the state and the first round's folder, and takes no adapters.
    pub round: Option<usize>,
    /// The folder of the federation's state, made in the first round.
    pub state: Option<PathBuf>,
    /// The folder that clients get for the next round.
    pub next: Option<PathBuf>,
    /// Leave out contributions that cannot be aggregated, instead of stopping.
    pub skip_refused: bool,
    /// The base that they belong to: [`EMBEDDED`], a folder or a hub id.
    pub base: String,
    /// The new file; needed in all rounds but 0.
    pub out: Option<PathBuf>,
    /// Replace the file if it is there.
    pub force: bool,
}

impl Default for AggregateRequest {
    /// No adapters yet, for the embedded base.
    fn default() -> Self {
        Self {
            adapters: Vec::new(),
            replies: None,
            strategy: Strategy::product(),
            rank: None,
            plan: None,
            start: None,
            round: None,
            state: None,
            next: None,
            skip_refused: false,
            base: EMBEDDED.into(),
            out: Some(PathBuf::from("aggregate.safetensors")),
            force: false,
        }
    }
}

/// What `federate aggregate --json` prints.
#[derive(Debug, Clone, Serialize)]
pub struct AggregateReport {
    /// How the adapters became one.
    pub strategy: Strategy,
    /// The round, from 1; 0 for the opening.
    pub round: usize,
    /// Number of adapters in the result.
    pub adapters: usize,
    /// Modules of the result.
    pub modules: usize,
    /// Distance from the exact mean of the updates, as a part of its norm.
    pub relative_distance: f64,
    /// Who is in, in the order of the request.
    pub accepted: Vec<Accepted>,
    /// Who was left out, and why.
    pub refused: Vec<Refused>,
}

/// A contribution that is in the result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accepted {
    /// Name of the client; of an adapter without one, its path.
    pub client: String,
    /// Weight in the mean, before weights are divided by their sum.
    pub weight: f64,
    /// Frobenius norm of the low-rank part of the update.
    pub norm: f64,
}

/// A contribution that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Name of the client; of an adapter without one, its path.
    pub client: String,
    /// All of its problems.
    pub problems: Vec<String>,
}

/// Combines adapters as `request` says.
///
/// Contributions stay in their files and are read module by module, so that memory does not grow with their number. With a
/// state, a repeated call for one round writes the same bytes, and the state advances once.
///
/// # Errors
/// [`Error::User`] for files that do not fit the base or each other, each by name, and for a round that does not follow the
/// state's; [`Error::Failed`] when the result cannot be written.
pub fn aggregate(request: &AggregateRequest, session: &Session<'_>) -> Result<AggregateReport> {
    let plan = request.plan()?;
    let round = request.round.unwrap_or(1);
    request.refuse_incomplete(round)?;
    request.out.iter().try_for_each(|out| output::new_file(out, request.force))?;
    let modules = BaseSource::parse(&request.base)?.open(session)?.modules();
    let folder = request.state.as_deref().map(|path| StateFolder::claim(path, &plan, session)).transpose()?;
    let start = request.state_before(round, &modules, folder.as_ref())?;
    let work = Work { request, session, plan, round, modules, folder };
    if round == 0 { work.open_federation(start) } else { work.close_round(start) }
}

impl AggregateRequest {
    /// The plan, without a round in it.
    fn plan(&self) -> Result<RoundPlan> {
        match &self.plan {
            Some(path) => plan::read(path),
            None => {
                let strategy = plan::with_rank(self.strategy.clone(), self.rank)?;
                // Flags do not say how many rounds there are: there is always another.
                let rounds = self.round.unwrap_or(1) + usize::from(self.next.is_some());
                Ok(RoundPlan { strategy, rounds, ..RoundPlan::default() })
            }
        }
    }

    fn refuse_incomplete(&self, round: usize) -> Result<()> {
        match (round, self.adapters.len(), &self.replies) {
            (0, 0, None) if self.state.is_some() => Ok(()),
            (0, ..) => {
                Err(Error::user("round 0 opens a federation", "give `--state`, and neither adapters nor replies"))
            }
            _ if self.out.is_none() => Err(Error::user("there is no file for the result", "give `--out`")),
            (_, 0, None) => {
                Err(Error::user("there is no adapter to aggregate", "give `--adapter` at least twice, or `--replies`"))
            }
            (_, 1, None) => Err(Error::user("there is one adapter to aggregate", "give `--adapter` at least twice")),
            _ => Ok(()),
        }
    }

    /// The state before the round.
    fn state_before(&self, round: usize, modules: &[ModuleInfo], folder: Option<&StateFolder>) -> Result<State> {
        let start = || match &self.start {
            None => Ok(State::new()),
            Some(path) => {
                let start = file::read(path, modules).user_error(format!("cannot start from `{}`", path.display()))?;
                Ok(State::starting_from(start.adapter))
            }
        };
        let Some(folder) = folder else { return start() };
        match (folder.is_new(), round) {
            (true, 0 | 1) => start(),
            (true, _) => Err(Error::user(format!("there is no state of round {}", round - 1), "begin with round 1")),
            (false, 0) => self.same_start(folder, start()?),
            (false, 1) if self.start.is_some() => self.same_start(folder, start()?),
            (false, _) if self.start.is_some() => Err(Error::user(
                format!("the global adapter is in the state `{}`", folder.path().display()),
                "leave `--start` out after the first round",
            )),
            (false, _) => folder.before(round),
        }
    }

    /// The start of a federation that has begun, which must be the one that it began with.
    fn same_start(&self, folder: &StateFolder, start: State) -> Result<State> {
        folder.before(1)?;
        if folder.is_saved(0, &start)? {
            return Ok(start);
        }
        Err(Error::user(
            format!("the state `{}` began with another start", folder.path().display()),
            "give the adapter of the first round, or begin another federation with another `--state`",
        ))
    }
}

/// A round that is being closed.
struct Work<'a, 's> {
    request: &'a AggregateRequest,
    session: &'a Session<'s>,
    plan: RoundPlan,
    round: usize,
    modules: Vec<ModuleInfo>,
    folder: Option<StateFolder>,
}

impl Work<'_, '_> {
    /// Makes the state before the first round, and the folder for its clients.
    fn open_federation(&self, state: State) -> Result<AggregateReport> {
        if let Some(folder) = &self.folder {
            folder.save(0, &state)?;
        }
        self.write_next(&state)?;
        self.folder.iter().try_for_each(StateFolder::finish)?;
        Ok(AggregateReport {
            strategy: self.plan.strategy.clone(),
            round: 0,
            adapters: 0,
            modules: state.global().map_or(0, catelier_adapters::Adapter::len),
            relative_distance: 0.0,
            accepted: Vec::new(),
            refused: Vec::new(),
        })
    }

    fn close_round(&self, before: State) -> Result<AggregateReport> {
        let Self { request, session, plan, round, .. } = self;
        if *round > plan.rounds {
            let (message, hint) = (format!("the plan has {} rounds", plan.rounds), "choose a round of the plan");
            return Err(Error::user(message, hint));
        }
        let instructions = plan.configure(*round, &before).map_err(self.cannot())?;
        let opener =
            Opener { modules: &self.modules, roles: &instructions.roles, global: before.global(), round: *round };
        let opened = opener.open(&request.asked()?)?;
        opened.clients.iter().for_each(|client| client.tell(session));
        let contributions = Contributions::read(&opened.source).map_err(self.cannot())?;
        let (accepted, refused) = self.sift(&contributions, &opened)?;
        let metadata = opened.metadata(&accepted, plan)?;

        let mut after = before.clone();
        let result = self.aggregate(&mut after, &accepted, &refused)?;
        let out = request.out.clone().unwrap_or_default();
        if let Some(folder) = &self.folder {
            folder.refuse_another(*round, &after)?;
        }
        file::write(&out, &result.adapter, Format::Kohya, &metadata).failed("cannot save the aggregate")?;
        session.written(ArtefactKind::Adapter, &out);
        if let Some(folder) = &self.folder {
            folder.save_both(*round, &before, &after)?;
        }
        self.write_next(&after)?;
        self.folder.iter().try_for_each(StateFolder::finish)?;
        Ok(self.report(&result, &accepted, refused))
    }

    /// What takes part, and what does not. Unless such contributions are skipped, all of them are named in the error.
    fn sift<'c>(
        &self,
        contributions: &Contributions<'c>,
        opened: &Opened,
    ) -> Result<(Contributions<'c>, Vec<RejectedContribution>)> {
        let mut refused = opened.rejected();
        if self.request.skip_refused || self.plan.on_failure == OnFailure::SkipClient {
            let (accepted, others) = self.plan.sift_from(contributions);
            refused.extend(others);
            for rejected in &refused {
                self.session.warn(format!("left out {rejected}"));
            }
            return Ok((accepted, refused));
        }
        if refused.is_empty() {
            // What is wrong with these is told by the aggregation itself, after the base that the files name.
            return Ok((contributions.clone(), refused));
        }
        refused.extend(self.plan.rejections(contributions));
        let total = contributions.len() + opened.unusable.len();
        Err(self.cannot()(FederationError::Contributions { total, rejected: refused }))
    }

    fn aggregate(
        &self,
        state: &mut State,
        accepted: &Contributions<'_>,
        refused: &[RejectedContribution],
    ) -> Result<Aggregate> {
        let Self { plan, round, .. } = self;
        let failed = refused.iter().map(|one| (one.client.clone(), one.to_string())).collect();
        let is_alone = self.folder.is_none();
        let aggregated = match (&plan.strategy, is_alone) {
            (_, false) => plan.close_round(state, accepted, failed),
            // Nothing keeps the residual, so it is in the result.
            (Strategy::Fedex, true) if state.global().is_none() => plan.strategy.aggregate_from(accepted),
            (_, true) => {
                plan.aggregate_from(*round, state.global(), accepted, state.memory()).map(|(aggregate, _)| aggregate)
            }
        };
        aggregated.map_err(self.cannot())
    }

    fn cannot(&self) -> impl Fn(FederationError) -> Error {
        |error| {
            let needs_start = matches!(error, FederationError::NeedsStart { .. });
            let hint = needs_start.then(|| "give that adapter with `--start`, or use `--strategy product`".to_owned());
            user_error("cannot aggregate these adapters", hint, error)
        }
    }

    /// Writes the folder that clients get for the round after `state`.
    fn write_next(&self, state: &State) -> Result<()> {
        let Some(path) = &self.request.next else { return Ok(()) };
        let round = self.round + 1;
        if round > self.plan.rounds {
            self.session.note(format!("round {} was the last of the plan: there is no next one", self.round));
            return Ok(());
        }
        let instructions = self.plan.configure(round, state).user_error(format!("cannot ask for round {round}"))?;
        let next = ClientRound { plan: self.plan.clone(), instructions, global: state.global().cloned() };
        let folder = OutputFolder::claim(path, COMMAND, false, self.session)?;
        folder.begin()?;
        next.save(path).failed("cannot save the next round")?;
        folder.finish()?;
        self.session.note(format!("round {round}: {}", path.display()));
        Ok(())
    }

    fn report(
        &self,
        result: &Aggregate,
        accepted: &Contributions<'_>,
        refused: Vec<RejectedContribution>,
    ) -> AggregateReport {
        let weighted = accepted.weighted(&self.plan.weighting);
        let accepted = weighted.iter().map(|(header, weight, norm)| {
            let client = header.client.clone();
            Accepted { client, weight, norm }
        });
        let refused = refused.into_iter().map(|rejected| {
            let problems = rejected.problems.iter().map(ToString::to_string).collect();
            Refused { client: rejected.client, problems }
        });
        AggregateReport {
            strategy: self.plan.strategy.clone(),
            round: self.round,
            adapters: weighted.len(),
            modules: result.adapter.len(),
            relative_distance: result.distance().relative(),
            accepted: accepted.collect(),
            refused: refused.collect(),
        }
    }
}

impl open::Client {
    /// Says what was found in an adapter's file.
    fn tell(&self, session: &Session<'_>) {
        if let Some((source, report, integrity)) = &self.told {
            session.note(format!("adapter: {source} ({report}, weight {})", source.weight));
            warn_of_changes(source, *integrity, session);
        }
    }
}
