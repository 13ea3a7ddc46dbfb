//! A federation of drawn artists on the embedded base, played in this process.

mod client;
mod ending;
mod knowledge;
mod mishaps;
mod page;
mod scores;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use catelier_adapters::Adapter;
use catelier_adapters::file::{self, Format, Metadata};
use catelier_federation::{
    Accountant, Instructions, RejectedContribution, RoundObserver, RoundReport, Start, State, Strategy, run_rounds,
};
use catelier_pipelines::training::Trainer;
use serde::{Deserialize, Serialize};

pub(crate) use client::trigger_of;
pub(crate) use ending::global_of;
pub use mishaps::Poison;
pub use scores::SimulationScore;

use crate::base::{Base, BaseSource};
use crate::drawn;
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::output::{self, OutputFolder};
use crate::session::Session;
use crate::settings::{self, ResolvedSimulate, SimulateSettings};
use client::SimulatedClient;
use knowledge::Public;
use mishaps::Mishaps;
use page::FederationPage;
use scores::Evaluator;

pub(crate) const COMMAND: &str = "federate simulate";
pub(crate) const SETTINGS: &str = "simulation.toml";
const STATE: &str = "state.safetensors";
pub(crate) const GLOBAL: &str = "global.safetensors";
const TABLE: &str = "simulation.json";
const PAGE: &str = "report.html";

/// Settings that may change when a simulation is resumed.
const FREE_ON_RESUME: [&str; 1] = ["rounds"];

/// The global adapters that are scored by round.
const ROUNDS: &str = "rounds";

/// The `delta` for which the privacy of the clients is told.
const DELTA: f64 = 1e-5;

/// What travels between the artists and the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exchange {
    /// Adapters, which a strategy aggregates.
    #[default]
    Adapters,
    /// What adapters predict for public images beyond the base: averaged, and distilled into one adapter.
    Knowledge,
}

/// A simulated federation as it is asked for.
#[derive(Debug, Clone, Default)]
pub struct SimulateRequest {
    /// What to play. A simulation to resume has its own settings; of these, it takes `rounds` and refuses others.
    pub settings: SimulateSettings,
    /// Go on after the last round that is saved in `out`.
    pub resume: bool,
    /// Where the adapters, the state and the table go.
    pub out: PathBuf,
    /// Write beside files in `out` that no simulation made; files in the way are refused all the same.
    pub force: bool,
}

/// A simulation that is done, as `federate simulate --json` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct Simulation {
    /// How contributions become one adapter.
    pub strategy: Strategy,
    /// One report for each round.
    pub rounds: Vec<RoundReport>,
    /// Every artist by its own last adapter, by the averaged one, and by the others that were asked for.
    pub scores: Vec<SimulationScore>,
    /// Epsilon of the clients' privacy over all rounds, for `delta` 1e-5; `null` without noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
}

/// Plays a federation as `request` says. The state is saved after every round: a resumed simulation gives the same bytes as
/// one that never stopped.
///
/// # Errors
/// [`Error::User`] for settings or a folder that cannot be used, [`Error::Failed`] when training or the disk fails,
/// [`Error::Cancelled`].
pub fn simulate(request: &SimulateRequest, session: &Session<'_>) -> Result<Simulation> {
    let (out, settings, state) = request.prepare(session)?;
    let base = BaseSource::Embedded.load(DType::F32, &Device::Cpu, session)?;
    let work = Work { base: &base, settings: &settings, out: &out, session };
    let state = if state.completed() == 0 { work.first_state()? } else { state };
    let mut clients = work.clients(&settings.artists, settings.images)?;
    // Before the rounds: settings by which nothing can be generated are refused at once.
    let mut evaluator = Evaluator::new(work)?;
    let state = match settings.exchange {
        Exchange::Adapters => work.play(&mut clients, state)?,
        Exchange::Knowledge => Public::new(work, &clients)?.play(&clients, state)?,
    };
    let global = work.whole(&state)?;
    let global_file = request.out.join(GLOBAL);
    file::write(&global_file, &global, Format::Kohya, &Metadata::default())
        .failed("cannot save the averaged adapter")?;
    session.written(ArtefactKind::Adapter, global_file);

    let late = work.clients(&settings.late, ending::LATE_IMAGES)?;
    let scores = ending::scores(work, &clients, &late, &state, &mut evaluator)?;
    let simulation = Simulation {
        strategy: settings.strategy.0.clone(),
        rounds: state.history().to_vec(),
        scores,
        epsilon: work.epsilon()?,
    };
    let text = serde_json::to_string_pretty(&simulation).failed("cannot write the table")?;
    output::write_text(&request.out.join(TABLE), &text)?;
    session.written(ArtefactKind::Scores, request.out.join(TABLE));
    work.write_page(clients.iter().chain(&late), &simulation, &evaluator)?;
    out.finish()?;
    Ok(simulation)
}

/// The state after the last round in the folder of a simulation.
pub(crate) fn read_state(folder: &Path) -> catelier_federation::Result<State> {
    State::load(&folder.join(STATE))
}

impl SimulateRequest {
    /// The folder, the settings, and the state to go on from.
    fn prepare(&self, session: &Session<'_>) -> Result<(OutputFolder, ResolvedSimulate, State)> {
        output::check_utf8(&self.out, "run.toml")?;
        let (saved, state) = (self.out.join(SETTINGS), self.out.join(STATE));
        if self.resume && !saved.exists() {
            return Err(Error::user(
                format!("`{}` holds no simulation to resume", self.out.display()),
                "start it without `--resume`",
            ));
        }
        let out = match self.resume {
            true => OutputFolder::reopen(&self.out, COMMAND, session)?,
            false => OutputFolder::claim(&self.out, COMMAND, self.force, session)?,
        };
        let settings = match self.resume {
            true => settings::resume(settings::read_saved(&saved)?, self.settings.clone(), &FREE_ON_RESUME)?,
            false => self.settings.clone(),
        }
        .resolve();
        let artists = settings.artists.iter().chain(&settings.late).map(String::as_str);
        let own =
            [SETTINGS, STATE, GLOBAL, TABLE, PAGE, ROUNDS, ending::TOGETHER, knowledge::PUBLIC, knowledge::DISTILLED];
        out.refuse_unknown(&own.into_iter().chain(artists).collect::<Vec<_>>())?;
        if !self.resume && state.exists() && !out.was_finished() {
            return Err(Error::user(
                format!("`{}` holds a simulation that is not finished", self.out.display()),
                "go on with it by `--resume`, or choose another `--out`",
            ));
        }
        let going_on = match self.resume && state.exists() {
            true => State::load(&state).user_error("cannot resume")?,
            false => State::default(),
        };
        check(&settings, going_on.completed())?;
        out.begin()?;
        settings::save(&saved, &settings)?;
        if !self.resume && state.exists() {
            std::fs::remove_file(&state).failed(format!("cannot replace `{}`", state.display()))?;
        }
        Ok((out, settings, going_on))
    }
}

/// Refuses what cannot be played, before anything of an earlier simulation is replaced.
fn check(settings: &ResolvedSimulate, completed: usize) -> Result<()> {
    settings.artists.iter().chain(&settings.late).try_for_each(|name| drawn::artist(name).map(|_| ()))?;
    settings.check()?;
    if completed > settings.rounds {
        return Err(Error::user(
            format!("{completed} rounds are played already, and `rounds` is {}", settings.rounds),
            "ask for more",
        ));
    }
    Ok(())
}

/// A simulation with its base loaded.
#[derive(Clone, Copy)]
struct Work<'a, 's> {
    base: &'a Base,
    settings: &'a ResolvedSimulate,
    out: &'a OutputFolder,
    session: &'a Session<'s>,
}

impl<'a, 's> Work<'a, 's> {
    fn clients(self, names: &[String], images: usize) -> Result<Vec<SimulatedClient<'a, 's>>> {
        let client = |(place, name): (usize, &String)| SimulatedClient::new(self, place, drawn::artist(name)?, images);
        names.iter().enumerate().map(client).collect()
    }

    /// Plays the rounds that `state` has not seen, and saves it after each.
    fn play(self, clients: &mut [SimulatedClient<'a, 's>], state: State) -> Result<State> {
        let plan = self.settings.plan();
        let mut log = RoundLog { work: self, outcome: Ok(()) };
        let played = run_rounds(clients, &plan, state, &mut log);
        log.outcome?;
        self.session.check_cancelled()?;
        played.failed("the federation stopped")
    }

    /// Where a part of the adapter stays at a common start, there is one; otherwise every client starts afresh.
    fn first_state(self) -> Result<State> {
        let plan = self.settings.plan();
        let is_plain = plan.strategy.is_plain() && plan.personal.is_none();
        if is_plain || self.settings.exchange == Exchange::Knowledge {
            return Ok(State::new());
        }
        let settings = self.training(self.out.path(), "start", self.settings.local_steps, 0)?;
        let fresh = Trainer::fresh_adapter(&self.base.model, &settings.config()).user_error("cannot start")?;
        let state = State::starting_from(fresh);
        plan.configure(1, &state).user_error("the federation cannot be played")?;
        Ok(state)
    }

    /// The global adapter with what clients merged into their base.
    fn whole(self, state: &State) -> Result<Adapter> {
        let global = state.global().ok_or_else(|| Error::user("there was no round", "ask for at least one round"))?;
        let next = self.settings.plan().configure(state.completed() + 1, state);
        let next: Instructions = next.failed("cannot read the state")?;
        match next.start {
            Start::Fresh => Ok(global.clone()),
            Start::Global => next.whole(global).failed("cannot add the merged update"),
        }
    }

    fn write_page<'c>(
        self,
        clients: impl Iterator<Item = &'c SimulatedClient<'a, 's>>,
        simulation: &Simulation,
        evaluator: &Evaluator<'_, '_>,
    ) -> Result<()>
    where
        'a: 'c,
        's: 'c,
    {
        let (shown, prompt) = evaluator.shown();
        let artists = clients.map(|client| (client.artist.name, client.images.as_slice())).collect();
        let page = FederationPage { settings: self.settings, simulation, prompt, artists, shown };
        let path = self.out.path().join(PAGE);
        output::write_text(&path, &page.html().failed("cannot write the report")?)?;
        self.session.written(ArtefactKind::Report, path);
        Ok(())
    }

    /// Every artist is counted in every round: that is an upper bound where not all take part.
    fn epsilon(self) -> Result<Option<f64>> {
        let Some(privacy) = self.settings.plan().privacy.filter(|privacy| privacy.noise > 0.0) else { return Ok(None) };
        let mut accountant = Accountant::new();
        accountant.add(privacy.noise, 1.0, self.settings.rounds).failed("cannot count the privacy")?;
        accountant.epsilon(DELTA).failed("cannot count the privacy").map(Some)
    }
}

/// Saves the state after every round, and tells what happened.
struct RoundLog<'a, 's> {
    work: Work<'a, 's>,
    outcome: Result<()>,
}

impl RoundObserver for RoundLog<'_, '_> {
    fn client_starts(&mut self, round: usize, client: &str) {
        self.work.session.note(format!("round {round}: {client} trains"));
    }

    fn client_failed(&mut self, round: usize, client: &str, reason: &dyn std::error::Error) {
        self.work.session.note(format!("round {round}: {client} is left out: {reason}"));
    }

    fn contribution_refused(&mut self, round: usize, rejected: &RejectedContribution) {
        self.work.session.note(format!("round {round}: refused {rejected}"));
    }

    fn round_done(&mut self, report: &RoundReport, state: &State) -> ControlFlow<()> {
        self.outcome = self.save(report, state);
        if self.outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

impl RoundLog<'_, '_> {
    fn save(&self, report: &RoundReport, state: &State) -> Result<()> {
        let Work { session, out, settings, .. } = self.work;
        // A cancelled client counts as one that failed: the round is played again when the simulation goes on.
        if report.failed.iter().any(|(_, reason)| *reason == Error::Cancelled.to_string()) {
            return Err(Error::Cancelled);
        }
        let RoundReport { round, relative_distance, norm, .. } = report;
        session.note(format!(
            "round {round}: averaged; update norm {norm:.3}, {relative_distance:.4} of it away from the exact mean"
        ));
        if settings.is_scored(*round) {
            let file = ending::global_of(out.path(), *round);
            std::fs::create_dir_all(out.path().join(ROUNDS)).failed("cannot make the folder of averaged adapters")?;
            file::write(&file, &self.work.whole(state)?, Format::Kohya, &Metadata::default())
                .failed("cannot save an averaged adapter")?;
        }
        let state_file = out.path().join(STATE);
        state.save(&state_file).failed("cannot save the state")?;
        session.written(ArtefactKind::State, &state_file);
        session.check_cancelled()
    }
}
