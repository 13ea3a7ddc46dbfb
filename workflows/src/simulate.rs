//! A federation of drawn artists on the embedded base, played in this process.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use catelier_adapters::file::{self, Format, Metadata};
use catelier_adapters::{Adapter, AdapterSet};
use catelier_evaluation::Reference;
use catelier_federation::{Client, Contribution, RoundObserver, RoundPlan, RoundReport, State, Strategy, run_rounds};
use catelier_gallery::Artist;
use catelier_pipelines::training::Ending;
use catelier_prompts::{PromptSet, Trigger};
use serde::Serialize;

use crate::base::{Base, BaseSource};
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::generator::ImageGenerator;
use crate::output::{self, OutputFolder};
use crate::run_folder::{RunFolder, adapter_in};
use crate::scoring::{BaseImages, EvaluationPrompts, Scorer, Towers};
use crate::session::Session;
use crate::settings::{self, ResolvedSimulate, ResolvedTrain, SamplingSettings, SimulateSettings, TrainSettings};
use crate::train::{Run, Start, TrainingData};
use crate::{drawn, images};

const COMMAND: &str = "federate simulate";
const SETTINGS: &str = "simulation.toml";
const STATE: &str = "state.safetensors";
const GLOBAL: &str = "global.safetensors";
const TABLE: &str = "simulation.json";

/// Settings that may change when a simulation is resumed.
const FREE_ON_RESUME: [&str; 1] = ["rounds"];

/// Seeds of a client's rounds are this far apart.
const SEEDS_A_ROUND: u64 = 1000;

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
    /// Every artist by its own last adapter and by the averaged one.
    pub scores: Vec<SimulationScore>,
}

/// An artist, scored with its own adapter or with the averaged one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimulationScore {
    /// The artist's name.
    pub artist: &'static str,
    /// `own` or `averaged`.
    pub adapter: &'static str,
    /// Mean of the style score; `null` where it cannot be measured.
    pub style: Option<f64>,
    /// Mean of the content score; `null` where it cannot be measured.
    pub content: Option<f64>,
    /// Mean of the identity score; `null` where it cannot be measured.
    pub identity: Option<f64>,
    /// Mean of the score without the trigger.
    pub kps_no_token: f64,
}

/// Plays a federation as `request` says. The state is saved after every round: a resumed simulation gives the same bytes as
/// one that never stopped.
///
/// # Errors
/// [`Error::User`] for settings or a folder that cannot be used, [`Error::Failed`] when training or the disk fails,
/// [`Error::Cancelled`].
pub fn simulate(request: &SimulateRequest, session: &Session<'_>) -> Result<Simulation> {
    let (out, settings, state) = request.prepare(session)?;
    let artists = settings.artists.iter().map(|name| drawn::artist(name)).collect::<Result<Vec<_>>>()?;
    let base = BaseSource::Embedded.load(DType::F32, &Device::Cpu, session)?;
    let work = Work { base: &base, settings: &settings, out: &out, session };
    let mut clients = artists.into_iter().map(|artist| work.client(artist)).collect::<Result<Vec<_>>>()?;
    // Before the rounds: settings by which nothing can be generated are refused at once.
    let mut evaluator = Evaluator::new(&work)?;
    let state = work.play(&mut clients, state)?;
    let global = state.global().ok_or_else(|| Error::user("there was no round", "ask for at least one round"))?;
    let global_file = request.out.join(GLOBAL);
    file::write(&global_file, global, Format::Kohya, &Metadata::default())
        .failed("cannot save the averaged adapter")?;
    session.written(ArtefactKind::Adapter, global_file);

    let scores = evaluator.scores(&clients, global)?;
    let simulation = Simulation { strategy: settings.strategy.0.clone(), rounds: state.history().to_vec(), scores };
    let text = serde_json::to_string_pretty(&simulation).failed("cannot write the table")?;
    output::write_text(&request.out.join(TABLE), &text)?;
    session.written(ArtefactKind::Scores, request.out.join(TABLE));
    out.finish()?;
    Ok(simulation)
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
        let artists = settings.artists.iter().map(String::as_str);
        out.refuse_unknown(&[SETTINGS, STATE, GLOBAL, TABLE].into_iter().chain(artists).collect::<Vec<_>>())?;
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
    settings.artists.iter().try_for_each(|name| drawn::artist(name).map(|_| ()))?;
    let strategy = &settings.strategy.0;
    if !strategy.is_plain() {
        return Err(Error::user(
            format!(
                "`{strategy}` needs a global adapter to start from, or clients that keep a part of it or merge it into their base"
            ),
            "the simulation's artists train all of the global adapter: choose `product`, `fedavg` or a robust strategy",
        ));
    }
    let rounds = settings.rounds;
    if rounds == 0 {
        return Err(Error::user("there is no round to play", "ask for at least one round"));
    }
    if completed > rounds {
        return Err(Error::user(
            format!("{completed} rounds are played already, and `rounds` is {rounds}"),
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

/// An artist of a simulated federation: images that stay with it, and a trigger of its own.
struct SimulatedClient<'a, 's> {
    artist: &'static Artist,
    trigger: String,
    work: Work<'a, 's>,
    folder: PathBuf,
    data: TrainingData,
    images: Vec<Reference>,
}

impl<'a, 's> Work<'a, 's> {
    /// A client with its images drawn and encoded.
    fn client(self, artist: &'static Artist) -> Result<SimulatedClient<'a, 's>> {
        let Self { base, settings, out, session } = self;
        let part = Path::new(artist.name).join(drawn::IMAGES);
        let folder = drawn::draw(out, &part, artist, settings.images, settings.seed, session)?;
        let trigger = trigger_of(artist);
        let data = TrainingData::load(base, &self.local_settings(&folder, &trigger, 1)?, session)?;
        let images = images::read_references(Some(&folder))?;
        Ok(SimulatedClient { artist, trigger, work: self, folder: out.path().join(artist.name), data, images })
    }

    /// The settings of a client's training in `round`; all clients draw the same noise in a round, so that they differ by
    /// their images alone.
    fn local_settings(self, images: &Path, trigger: &str, round: usize) -> Result<ResolvedTrain> {
        let settings = TrainSettings {
            images: Some(images.to_path_buf()),
            trigger: Some(trigger.to_string()),
            steps: Some(self.settings.local_steps),
            seed: Some(self.settings.seed + SEEDS_A_ROUND * round as u64),
            drift_every: Some(0),
            ..TrainSettings::default()
        };
        settings.resolve(&self.base.defaults())
    }

    /// Plays the rounds that `state` has not seen, and saves it after each.
    fn play(self, clients: &mut [SimulatedClient<'a, 's>], state: State) -> Result<State> {
        let plan = RoundPlan {
            strategy: self.settings.strategy.0.clone(),
            rounds: self.settings.rounds,
            ..RoundPlan::default()
        };
        let mut log = RoundLog { session: self.session, state_file: self.out.path().join(STATE), outcome: Ok(()) };
        let state = run_rounds(clients, &plan, state, &mut log).failed("the federation stopped")?;
        log.outcome?;
        Ok(state)
    }
}

/// A word of its own for every artist, which means nothing to the base.
fn trigger_of(artist: &Artist) -> String {
    let consonants = artist.name.chars().filter(|letter| !"aeiou".contains(*letter)).take(3);
    format!("x{}", consonants.collect::<String>())
}

impl Client for SimulatedClient<'_, '_> {
    type Error = Error;

    fn name(&self) -> &str {
        self.artist.name
    }

    fn train(&mut self, round: usize, global: Option<&Adapter>) -> Result<Contribution> {
        let Work { base, session, .. } = self.work;
        let settings = self.work.local_settings(&self.folder.join(drawn::IMAGES), &self.trigger, round)?;
        let folder = RunFolder::replace(&self.round_folder(round), session)?;
        let start = global.map_or(Start::Fresh, Start::From);
        let trained = Run { base, data: &self.data, folder: &folder, start }.train(settings, session)?;
        if trained.ending != Ending::Finished {
            return Err(Error::Cancelled);
        }
        let contribution = Contribution::from_examples(self.artist.name, trained.adapter, self.images.len());
        Ok(contribution.on_base(&base.model.fingerprint))
    }
}

impl SimulatedClient<'_, '_> {
    fn round_folder(&self, round: usize) -> PathBuf {
        self.folder.join(format!("round-{round}"))
    }

    /// The adapter that it trained in the last round.
    fn own_adapter(&self) -> Result<Adapter> {
        let path = adapter_in(&self.round_folder(self.work.settings.rounds), Format::Kohya);
        let own = file::read(&path, &self.work.base.model.modules()).failed("cannot read an adapter")?;
        match own.integrity.remark() {
            Some(remark) => Err(Error::user(
                format!("`{}` is not as it was saved: {remark}", path.display()),
                "restore it, or play the simulation again in another folder",
            )),
            None => Ok(own.adapter),
        }
    }
}

/// Saves the state after every round, and tells what happened.
struct RoundLog<'a, 's> {
    session: &'a Session<'s>,
    state_file: PathBuf,
    outcome: Result<()>,
}

impl RoundObserver for RoundLog<'_, '_> {
    fn client_starts(&mut self, round: usize, client: &str) {
        self.session.note(format!("round {round}: {client} trains"));
    }

    fn round_done(&mut self, report: &RoundReport, state: &State) -> ControlFlow<()> {
        let RoundReport { round, relative_distance, norm, .. } = report;
        self.session.note(format!(
            "round {round}: averaged; update norm {norm:.3}, {relative_distance:.4} of it away from the exact mean"
        ));
        self.outcome = state.save(&self.state_file).failed("cannot save the state");
        if self.outcome.is_ok() {
            self.session.written(ArtefactKind::State, &self.state_file);
            self.outcome = self.session.check_cancelled();
        }
        if self.outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

/// Scores adapters with the same prompts and seeds.
struct Evaluator<'a, 's> {
    work: &'a Work<'a, 's>,
    generator: ImageGenerator<'a>,
    towers: Towers,
    prompts: EvaluationPrompts,
    base_images: BaseImages,
}

impl<'a, 's> Evaluator<'a, 's> {
    fn new(work: &'a Work<'a, 's>) -> Result<Self> {
        let Work { base, settings, session, .. } = *work;
        let set = PromptSet::builtin(base.prompt_set()).failed("cannot read the embedded prompts")?;
        let prompts = EvaluationPrompts::new(&set, settings.prompts, 1, settings.seed)?;
        let sampling = SamplingSettings { steps: Some(settings.sampling_steps), ..SamplingSettings::default() };
        let mut generator = ImageGenerator::new(base, &sampling.resolve(&base.defaults()));
        let base_images = prompts.generate_base(&mut generator, session)?;
        Ok(Self { work, generator, towers: Towers::embedded()?, prompts, base_images })
    }

    /// Every artist by its own last adapter and by the averaged one.
    fn scores(&mut self, clients: &[SimulatedClient<'_, '_>], global: &Adapter) -> Result<Vec<SimulationScore>> {
        let mut scores = Vec::new();
        for client in clients {
            scores.push(self.score(client, "own", &client.own_adapter()?)?);
            scores.push(self.score(client, "averaged", global)?);
        }
        Ok(scores)
    }

    fn score(
        &mut self,
        client: &SimulatedClient<'_, '_>,
        name: &'static str,
        adapter: &Adapter,
    ) -> Result<SimulationScore> {
        let (session, adapters) = (self.work.session, AdapterSet::single(adapter, 1.0));
        let trigger = Trigger::new(&client.trigger).failed("cannot use the trigger")?;
        let images = self.prompts.generate(&mut self.generator, &adapters, Some(&trigger), session)?;
        let generation = self.generator.generation(Some(name), Some(&client.trigger));
        let (prompts, base, towers) = (&self.prompts, &self.base_images, &self.towers);
        let choices = prompts.choices(self.work.base, &client.images);
        let scorer = Scorer { prompts, base, references: &client.images, others: &[], choices, towers };
        let scores = scorer.score(&scorer.evaluation(&images, generation), session)?;
        Ok(SimulationScore {
            artist: client.artist.name,
            adapter: name,
            style: scores.style.map(|style| style.score.mean),
            content: scores.content.map(|content| content.score.mean),
            identity: scores.identity.map(|identity| identity.mean),
            kps_no_token: scores.kps_no_token.mean,
        })
    }
}
