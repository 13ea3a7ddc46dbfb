//! What follows the rounds: tuning at home, what the rounds are compared with, and the scores.

use std::path::{Path, PathBuf};

use catelier_adapters::Adapter;
use catelier_adapters::file;
use catelier_federation::State;

use super::client::SimulatedClient;
use super::scores::{Evaluator, SimulationScore};
use super::{ROUNDS, Work};
use crate::error::{Context, Result};
use crate::local_training::LocalTraining;
use crate::train::TrainingData;

/// The run of one adapter on the images of all artists.
pub(super) const TOGETHER: &str = "together";

/// Images of an artist that joins after the last round.
pub(super) const LATE_IMAGES: usize = 3;

/// The file of the global adapter after a round that is scored.
pub(crate) fn global_of(folder: &Path, round: usize) -> PathBuf {
    folder.join(ROUNDS).join(format!("{round:04}.safetensors"))
}

/// Every artist with its own last adapter, the averaged one, and the others that the settings ask for.
pub(super) fn scores(
    work: Work<'_, '_>,
    clients: &[SimulatedClient<'_, '_>],
    late: &[SimulatedClient<'_, '_>],
    state: &State,
    evaluator: &mut Evaluator<'_, '_>,
) -> Result<Vec<SimulationScore>> {
    let global = &work.whole(state)?;
    let settings = work.settings;
    let steps = settings.rounds.saturating_mul(settings.local_steps);
    let together = settings.baselines.then(|| together(work, clients, steps)).transpose()?;
    // Tuning goes on from the tensors of the rounds; what is merged into the base stays merged.
    let tuned = settings.tuning_steps > 0;
    let mut scores = by_round(work, clients, evaluator)?;
    for client in clients {
        if let Some(own) = client.own_adapter()? {
            scores.push(evaluator.score(client, "own", None, &own)?);
        }
        scores.push(evaluator.score(client, "averaged", None, global)?);
        if tuned {
            let own = client.tune(&client.at_home(state, global)?, settings.tuning_steps, "tuned")?;
            scores.push(evaluator.score(client, "tuned", None, &own)?);
        }
        if let Some(together) = &together {
            scores.push(evaluator.score(client, "alone", None, &client.alone(steps)?)?);
            scores.push(evaluator.score(client, "together", None, together)?);
        }
    }
    scores.extend(joined_late(late, work.settings.local_steps, global, evaluator)?);
    Ok(scores)
}

/// The global adapter after each round for which the settings ask.
fn by_round(
    work: Work<'_, '_>,
    clients: &[SimulatedClient<'_, '_>],
    evaluator: &mut Evaluator<'_, '_>,
) -> Result<Vec<SimulationScore>> {
    let mut scores = Vec::new();
    for round in (1..work.settings.rounds).filter(|round| work.settings.is_scored(*round)) {
        let file = global_of(work.out.path(), round);
        let global = file::read(&file, &work.base.model.modules()).failed("cannot read an averaged adapter")?.adapter;
        for client in clients {
            scores.push(evaluator.score(client, "averaged", Some(round), &global)?);
        }
    }
    Ok(scores)
}

/// One adapter on the images of all artists, with the steps of all of them.
fn together(work: Work<'_, '_>, clients: &[SimulatedClient<'_, '_>], steps: usize) -> Result<Adapter> {
    let data = TrainingData::together(clients.iter().map(SimulatedClient::data));
    let settings = work.training(work.out.path(), TOGETHER, steps.saturating_mul(clients.len()), 0)?;
    let training = LocalTraining { base: work.base, data: &data, towards: None, session: work.session };
    Ok(training.alone(&settings, &work.out.path().join(TOGETHER))?.adapter)
}

/// Artists that join with a few images: each trains from the global adapter, and alone.
fn joined_late(
    late: &[SimulatedClient<'_, '_>],
    steps: usize,
    global: &Adapter,
    evaluator: &mut Evaluator<'_, '_>,
) -> Result<Vec<SimulationScore>> {
    let mut scores = Vec::new();
    for client in late {
        let from_global = client.tune(global, steps, "late")?;
        scores.push(evaluator.score(client, "late", None, &from_global)?);
        scores.push(evaluator.score(client, "late alone", None, &client.alone(steps)?)?);
    }
    Ok(scores)
}
