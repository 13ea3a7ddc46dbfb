//! The loop of rounds: clients train, the strategy aggregates, and the observer is called.

use std::ops::ControlFlow;

use catelier_adapters::{Adapter, sum};

use crate::contribution::Contribution;
use crate::error::{Error, RejectedContribution, Result, RoundError};
use crate::instructions::Instructions;
use crate::plan::{OnFailure, RoundPlan};
use crate::report::{ClientReport, RoundReport};
use crate::state::State;
use crate::strategy::Aggregate;

/// A client trains an adapter on data of its own: in this process, through a folder, or behind a
/// network.
pub trait Client {
    /// The error of a client that cannot train.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Name of the client, unique among all clients.
    fn name(&self) -> &str;

    /// Trains from the global adapter, or from a fresh one if there is none yet, and returns the client's contribution.
    /// `round` counts from 1.
    fn train(&mut self, round: usize, global: Option<&Adapter>) -> Result<Contribution, Self::Error>;

    /// Whether the client can do what these instructions say. By default it can if they are
    /// [plain](Instructions::are_plain): all tensors are trained from the global adapter.
    fn can_follow(&self, instructions: &Instructions) -> bool {
        instructions.are_plain()
    }

    /// Trains as the instructions say, and returns the whole adapter; the plan's border decides what leaves. A client
    /// that overrides [`can_follow`](Self::can_follow) overrides this method too.
    fn follow(&mut self, instructions: &Instructions, global: Option<&Adapter>) -> Result<Contribution, Self::Error> {
        self.train(instructions.round, global)
    }
}

/// Observes a run; every method does nothing by default.
pub trait RoundObserver {
    /// A client is about to train in a round.
    fn client_starts(&mut self, _round: usize, _client: &str) {}

    /// A client has trained.
    fn client_done(&mut self, _round: usize, _contribution: &Contribution) {}

    /// A client failed, and the round continues without it.
    fn client_failed(&mut self, _round: usize, _client: &str, _reason: &dyn std::error::Error) {}

    /// A contribution was refused, and the round continues without it.
    fn contribution_refused(&mut self, _round: usize, _rejected: &RejectedContribution) {}

    /// A round is over, and the state holds its result. [`ControlFlow::Break`] ends the run.
    fn round_done(&mut self, _report: &RoundReport, _state: &State) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Observes nothing.
impl RoundObserver for () {}

/// Runs the rounds that the state does not hold yet and returns the state after the last.
///
/// In every round each client that takes part trains from the same global adapter, as the plan's instructions say; what
/// leaves it passes the plan's border; then the contributions are checked and aggregated. A run from a state that was
/// saved and loaded equals an uninterrupted one.
///
/// # Errors
/// [`RoundError::NoClients`]; [`RoundError::CannotFollow`], before any client trains; [`RoundError::Client`] under
/// [`OnFailure::Stop`]; [`RoundError::Aggregate`] if contributions cannot be aggregated, or no client contributed.
pub fn run_rounds<C: Client>(
    clients: &mut [C],
    plan: &RoundPlan,
    mut state: State,
    observer: &mut dyn RoundObserver,
) -> Result<State, RoundError<C::Error>> {
    if clients.is_empty() {
        return Err(RoundError::NoClients);
    }
    while state.completed() < plan.rounds {
        let round = state.completed() + 1;
        let failed_round = |source| RoundError::Aggregate { round, source };
        let instructions = plan.configure(round, &state).map_err(failed_round)?;
        let Collected { contributions, failed } = collect(clients, plan, &instructions, state.global(), observer)?;
        state = plan.advance(state, &contributions, failed).map_err(failed_round)?;
        if state.history().last().is_some_and(|report| observer.round_done(report, &state).is_break()) {
            break;
        }
    }
    Ok(state)
}

impl RoundPlan {
    /// The state after its next round: the [aggregate](Self::aggregate) of these contributions, and a report, in which
    /// `failed` are the clients that are not among them, each with the reason. Nothing else decides the result, so that
    /// everybody who has the state and the contributions gets the same bytes.
    ///
    /// # Errors
    /// As [`aggregate`](Self::aggregate).
    pub fn advance(
        &self,
        mut state: State,
        contributions: &[Contribution],
        failed: Vec<(String, String)>,
    ) -> Result<State> {
        let round = state.completed() + 1;
        let (aggregate, memory) = self.aggregate(round, state.global(), contributions, state.memory())?;
        let report = report(round, &self.weighting.apply(contributions), failed, &aggregate, state.global())?;
        state.advance(aggregate.adapter, memory, report);
        Ok(state)
    }
}

/// What the clients of a round brought.
struct Collected {
    contributions: Vec<Contribution>,
    /// The clients that failed and are skipped, each with the text of its error.
    failed: Vec<(String, String)>,
}

/// Lets every client of the round train, and takes what leaves it.
fn collect<C: Client>(
    clients: &mut [C],
    plan: &RoundPlan,
    instructions: &Instructions,
    global: Option<&Adapter>,
    observer: &mut dyn RoundObserver,
) -> Result<Collected, RoundError<C::Error>> {
    let round = instructions.round;
    let failed_round = |source| RoundError::Aggregate { round, source };
    let present = plan.participation.of_round(round, clients.len());
    if let Some(index) = present.iter().find(|index| !clients[**index].can_follow(instructions)) {
        let (client, strategy) = (clients[*index].name().to_owned(), plan.strategy.to_string());
        return Err(RoundError::CannotFollow { client, strategy });
    }
    let (mut contributions, mut failed, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
    for index in &present {
        match train(&mut clients[*index], plan, instructions, global, observer)? {
            Trained::Failed(reason) => failed.push((clients[*index].name().to_owned(), reason)),
            Trained::Done(contribution) => {
                let client = contribution.client.clone();
                match plan.at_the_border(instructions, contribution, global).map_err(failed_round)? {
                    Ok(contribution) => contributions.push(contribution),
                    Err(problems) => rejected.push(RejectedContribution { client, problems }),
                }
            }
        }
    }
    if plan.on_failure == OnFailure::SkipClient {
        let (accepted, refused) = plan.sift(contributions).map_err(failed_round)?;
        for rejected in rejected.into_iter().chain(refused) {
            observer.contribution_refused(round, &rejected);
            failed.push((rejected.client.clone(), rejected.to_string()));
        }
        return Ok(Collected { contributions: accepted, failed });
    }
    if rejected.is_empty() {
        return Ok(Collected { contributions, failed });
    }
    Err(failed_round(Error::Contributions { total: present.len(), rejected }))
}

/// The end of a client's training.
enum Trained {
    Done(Contribution),
    Failed(String),
}

/// Lets one client train; under [`OnFailure::SkipClient`] its failure is told and passed on.
fn train<C: Client>(
    client: &mut C,
    plan: &RoundPlan,
    instructions: &Instructions,
    global: Option<&Adapter>,
    observer: &mut dyn RoundObserver,
) -> Result<Trained, RoundError<C::Error>> {
    let round = instructions.round;
    observer.client_starts(round, client.name());
    match client.follow(instructions, global) {
        Ok(contribution) => {
            observer.client_done(round, &contribution);
            Ok(Trained::Done(contribution))
        }
        Err(source) if plan.on_failure == OnFailure::SkipClient => {
            observer.client_failed(round, client.name(), &source);
            Ok(Trained::Failed(source.to_string()))
        }
        Err(source) => Err(RoundError::Client { client: client.name().to_owned(), round, source }),
    }
}

fn report(
    round: usize,
    contributions: &[Contribution],
    failed: Vec<(String, String)>,
    aggregate: &Aggregate,
    before: Option<&Adapter>,
) -> Result<RoundReport> {
    let failure = || Error::adapters("measuring the round");
    let clients = contributions.iter().map(|contribution| {
        let norm = contribution.adapter.delta_norm().map_err(failure())?;
        Ok(ClientReport { client: contribution.client.clone(), weight: contribution.weight, norm: norm as f32 })
    });
    let norm = aggregate.adapter.delta_norm().map_err(failure())?;
    let change = match before {
        None => norm,
        Some(before) => {
            let difference = sum(&[(&aggregate.adapter.low_rank(), 1.0), (&before.low_rank(), -1.0)]);
            difference.and_then(|difference| difference.delta_norm()).map_err(failure())?
        }
    };
    let distance = aggregate.distance();
    Ok(RoundReport {
        round,
        clients: clients.collect::<Result<_>>()?,
        failed,
        distance: distance.absolute as f32,
        relative_distance: distance.relative() as f32,
        norm: norm as f32,
        change: change as f32,
    })
}
