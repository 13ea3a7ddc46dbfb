//! The loop of rounds: clients train, the strategy aggregates, and the observer is called.

use std::ops::ControlFlow;

use catelier_adapters::{Adapter, sum};
use serde::{Deserialize, Serialize};

use crate::contribution::Contribution;
use crate::error::{Error, Result, RoundError};
use crate::report::{ClientReport, RoundReport};
use crate::state::State;
use crate::strategy::{Aggregate, Strategy};

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
}

/// Settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundPlan {
    /// The rule that aggregates contributions.
    pub strategy: Strategy,
    /// Number of rounds of the whole run, those already in the state included.
    pub rounds: usize,
    /// The reaction to a client that fails.
    pub on_failure: OnFailure,
}

/// The reaction to a client that fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The run stops with the client's error.
    #[default]
    Stop,
    /// The round continues without the client, which takes part again in the next round.
    SkipClient,
}

/// Observes a run; every method does nothing by default.
pub trait RoundObserver {
    /// A client is about to train in a round.
    fn client_starts(&mut self, _round: usize, _client: &str) {}

    /// A client has trained.
    fn client_done(&mut self, _round: usize, _contribution: &Contribution) {}

    /// A client failed, and the round continues without it.
    fn client_failed(&mut self, _round: usize, _client: &str, _reason: &dyn std::error::Error) {}

    /// A round is over, and the state holds its result. [`ControlFlow::Break`] ends the run.
    fn round_done(&mut self, _report: &RoundReport, _state: &State) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Observes nothing.
impl RoundObserver for () {}

/// Runs the rounds that the state does not hold yet and returns the state after the last.
///
/// In every round each client trains from the same global adapter; then the contributions are
/// checked and aggregated. A run from a state that was saved and loaded equals an uninterrupted one.
///
/// # Errors
/// [`RoundError::NoClients`]; [`RoundError::Client`] under [`OnFailure::Stop`];
/// [`RoundError::Aggregate`] if contributions cannot be aggregated, or no client contributed.
pub fn run_rounds<C: Client>(
    clients: &mut [C],
    plan: &RoundPlan,
    mut state: State,
    observer: &mut dyn RoundObserver,
) -> Result<State, RoundError<C::Error>> {
    if clients.is_empty() {
        return Err(RoundError::NoClients);
    }
    if state.completed() < plan.rounds {
        let round = state.completed() + 1;
        // Before the first client trains.
        plan.strategy.validate().map_err(|source| RoundError::Aggregate { round, source })?;
    }
    while state.completed() < plan.rounds {
        let round = state.completed() + 1;
        let (contributions, failed) = collect(clients, plan, round, state.global(), observer)?;
        let failed_round = |source| RoundError::Aggregate { round, source };
        let aggregate = plan.strategy.aggregate(&contributions).map_err(failed_round)?;
        let report = report(round, &contributions, failed, &aggregate, state.global()).map_err(failed_round)?;
        state.advance(aggregate.adapter, report.clone());
        if observer.round_done(&report, &state).is_break() {
            break;
        }
    }
    Ok(state)
}

type Collected = (Vec<Contribution>, Vec<(String, String)>);

/// Lets every client train; returns the contributions, and the failures that are skipped.
fn collect<C: Client>(
    clients: &mut [C],
    plan: &RoundPlan,
    round: usize,
    global: Option<&Adapter>,
    observer: &mut dyn RoundObserver,
) -> Result<Collected, RoundError<C::Error>> {
    let (mut contributions, mut failed) = (Vec::new(), Vec::new());
    for client in clients {
        observer.client_starts(round, client.name());
        match client.train(round, global) {
            Ok(contribution) => {
                observer.client_done(round, &contribution);
                contributions.push(contribution);
            }
            Err(source) if plan.on_failure == OnFailure::SkipClient => {
                observer.client_failed(round, client.name(), &source);
                failed.push((client.name().to_owned(), source.to_string()));
            }
            Err(source) => {
                return Err(RoundError::Client { client: client.name().to_owned(), round, source });
            }
        }
    }
    Ok((contributions, failed))
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
