//! The loop of rounds: clients train, the strategy aggregates, the observer watches.

use std::ops::ControlFlow;

use catelier_adapters::{Adapter, sum};
use serde::{Deserialize, Serialize};

use crate::contribution::Contribution;
use crate::error::{Error, Result, RoundError};
use crate::state::State;
use crate::strategy::{Aggregate, Strategy};

/// Someone who trains an adapter on data of their own: in this process, in a folder, or behind a
/// network.
pub trait Client {
    /// What can go wrong on the client's side.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Name of the client, unique among all.
    fn name(&self) -> &str;

    /// Trains from the global adapter, or from a fresh one in the first round, and hands in the
    /// result. `round` counts from 1.
    fn train(&mut self, round: usize, global: Option<&Adapter>) -> Result<Contribution, Self::Error>;
}

/// What is to be run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundPlan {
    /// How contributions become one adapter.
    pub strategy: Strategy,
    /// How many rounds there are in all, those already in the state included.
    pub rounds: usize,
    /// What happens when a client fails.
    pub on_failure: OnFailure,
}

/// What happens when a client fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The run stops with the client's error.
    #[default]
    Stop,
    /// The round goes on without the client, who is asked again in the next.
    GoOn,
}

/// What happened in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// The round, from 1.
    pub round: usize,
    /// Who handed in, in the order of the clients.
    pub clients: Vec<ClientReport>,
    /// Who failed, with the reason.
    pub failed: Vec<(String, String)>,
    /// How far the aggregate is from the exact mean of the updates, in Frobenius norm.
    pub distance: f32,
    /// The same as a part of the exact mean's norm.
    pub relative_distance: f32,
    /// Frobenius norm of the global update.
    pub norm: f32,
    /// Frobenius norm of its change since the round before; in the first round, `norm`.
    pub change: f32,
}

/// What one client handed in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Name of the client.
    pub client: String,
    /// Weight of its contribution.
    pub weight: f64,
    /// Frobenius norm of its update.
    pub norm: f32,
}

/// Watches a run; every method does nothing by default.
pub trait RoundObserver {
    /// A client is about to train in a round.
    fn client_starts(&mut self, _round: usize, _client: &str) {}

    /// A client handed in.
    fn client_done(&mut self, _round: usize, _contribution: &Contribution) {}

    /// A client failed and the round goes on without it.
    fn client_failed(&mut self, _round: usize, _client: &str, _reason: &dyn std::error::Error) {}

    /// A round is over; the state holds its result. [`ControlFlow::Break`] ends the run here.
    fn round_done(&mut self, _report: &RoundReport, _state: &State) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Watches nothing.
impl RoundObserver for () {}

/// Runs the rounds that the state has not seen yet and returns the state after the last.
///
/// In every round each client trains from the same global adapter; then the contributions are
/// checked and aggregated. A state that was saved and loaded goes on where it stopped.
///
/// **Errors** [`RoundError::Client`] under [`OnFailure::Stop`]; [`RoundError::Aggregate`] if
/// contributions cannot be aggregated, or nobody handed in.
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

/// Lets every client train and gathers what they hand in.
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
            Err(source) if plan.on_failure == OnFailure::GoOn => {
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
