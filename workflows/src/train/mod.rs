//! A training run: images in, adapter out.

mod data;
mod round;
mod watch;

use std::path::PathBuf;

use catelier_adapters::Adapter;
use catelier_pipelines::training::{Ending, Knowledge, Resumed, StartingPoint, StepReport, Trainer};

pub use data::TrainingData;
pub use round::{CONTRIBUTION, RoundRequest};

use crate::base::{Base, BaseSource};
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::plan::TrainPlan;
use crate::run_folder::RunFolder;
use crate::session::Session;
use crate::settings::train::FREE_ON_RESUME;
use crate::settings::{self, ResolvedTrain, TrainSettings};
use round::LocalRound;
use watch::Watch;

/// A training run as it is asked for.
#[derive(Debug, Clone, Default)]
pub struct TrainRequest {
    /// What to train on and how. A run to resume has its own settings; of these, it takes those that change no bit and
    /// `steps`, and refuses others.
    pub settings: TrainSettings,
    /// Go on from the newest state in `out`.
    pub resume: bool,
    /// The run's folder: settings, metrics, previews, state, the adapter and its card.
    pub out: PathBuf,
    /// Write beside files in `out` that no run made; files in the way are refused all the same.
    pub force: bool,
    /// The round of a federation that the run is a part of: what leaves is written to [`CONTRIBUTION`] in `out`.
    pub round: Option<RoundRequest>,
}

/// A run that came to its end, or that the caller stopped.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The adapter.
    pub adapter: Adapter,
    /// Its safetensors file, or PEFT folder.
    pub adapter_file: PathBuf,
    /// The settings that it was trained with.
    pub settings: ResolvedTrain,
    /// One report for each step that was made now.
    pub reports: Vec<StepReport>,
    /// How it ended; a stopped run goes on by [`TrainRequest::resume`].
    pub ending: Ending,
}

/// Trains an adapter as `request` says, and leaves everything in its folder.
///
/// Cancelled before the first step, it leaves nothing; cancelled later, it saves the state and the adapter, and
/// [`Trained::ending`] says so.
///
/// # Errors
/// [`Error::User`] for settings that cannot train, [`Error::Failed`] when
/// training or saving fails, [`Error::Cancelled`] before the first step.
pub fn train(request: &TrainRequest, session: &Session<'_>) -> Result<Trained> {
    let (folder, asked) = request.prepare(session)?;
    let files = BaseSource::parse(asked.base_name())?.open(session)?;
    let modules = files.modules();
    let round = request.round.as_ref().map(|round| LocalRound::read(round, &modules)).transpose()?;
    let asked = round.as_ref().map_or(asked.clone(), |round| round.fit(asked, &modules));
    let settings = asked.resolve(&files.defaults())?;
    let device = session.open_device(settings.device)?;
    let plan = TrainPlan::new(&files.config, &settings, &device)?;
    plan.note(session);
    let mut base = files.load(settings.dtype.into(), &device, session)?;
    base.model.unet.recompute(plan.recompute);
    let data = TrainingData::load(&base, &settings, session)?;
    match round {
        Some(round) => round.train(&base, &data, &folder, settings, request.resume, session),
        None => {
            let run =
                Run { base: &base, data: &data, folder: &folder, start: None, towards: None, resume: request.resume };
            run.train(settings, session)
        }
    }
}

impl TrainRequest {
    /// The run's folder and what is asked of it; a run to resume has its settings there.
    fn prepare(&self, session: &Session<'_>) -> Result<(RunFolder, TrainSettings)> {
        if !self.resume {
            self.settings.check_required()?;
            return Ok((RunFolder::create(&self.out, self.force, session)?, self.settings.clone()));
        }
        let folder = RunFolder::open(&self.out, session)?;
        let saved: TrainSettings = settings::read_saved(&folder.settings())?;
        Ok((folder, settings::resume(saved, self.settings.clone(), &FREE_ON_RESUME)?))
    }
}

/// The card and `run.toml` would say less than the adapter has.
fn refuse_fewer_steps(done: usize, asked: usize) -> Result<()> {
    match done > asked {
        true => {
            Err(Error::user(format!("the run has made {done} steps already, and `steps` is {asked}"), "ask for more"))
        }
        false => Ok(()),
    }
}

/// A run whose base is loaded and whose data are encoded: several runs can share both.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The base.
    pub base: &'a Base,
    /// What it learns from.
    pub data: &'a TrainingData,
    /// Where everything goes.
    pub folder: &'a RunFolder,
    /// The adapter that it goes on from, as in a federation's next round; `None` for a fresh one, which changes nothing yet.
    pub start: Option<&'a StartingPoint>,
    /// What others know of the first samples of the data; `None` trains on the images alone.
    pub towards: Option<&'a Knowledge>,
    /// Whether it goes on after the newest state in its folder.
    pub resume: bool,
}

impl Run<'_> {
    /// Trains with `settings`, those that the data were encoded with but for what [`TrainingData`] says.
    ///
    /// # Errors
    /// As [`train`].
    pub fn train(self, settings: ResolvedTrain, session: &Session<'_>) -> Result<Trained> {
        session.check_cancelled()?;
        let Self { base, data, folder, start, towards, resume } = self;
        let config = settings.config();
        let dataset = data.dataset(base, &config)?;
        let mut trainer = match start {
            Some(start) => Trainer::from_start(&base.model, config, &dataset, folder.states(), start.clone()),
            None => Trainer::new(&base.model, config, &dataset, folder.states()),
        }
        .user_error("cannot train")?;
        if let Some(knowledge) = towards {
            trainer = trainer.towards(knowledge).failed("cannot train towards what others know")?;
        }
        if resume {
            let Resumed { step, unusable } = trainer.resume().user_error("cannot resume")?;
            refuse_fewer_steps(step, settings.steps)?;
            unusable.iter().for_each(|state| session.warn(format!("left out the newer state {state}")));
            session.note(format!("resumed after step {step}"));
        }
        if settings.drift_every > 0 {
            let prompts = data.drift_prompts(base)?;
            trainer.measure_drift(&prompts, &|| session.is_cancelled()).failed("cannot measure the drift")?;
        }
        folder.begin()?;
        folder.save_settings(&settings)?;
        // Also where a run begins anew: one that was killed before its first state has left metrics.
        let run = trainer.run_id();
        match folder.keep_metrics_until(trainer.step(), &run)? {
            0 => {}
            lines => session.warn(format!("left out {lines} lines of the metrics, damaged or of another run")),
        }
        let mut watch = Watch::new(base, folder, &settings, trainer.step(), run, session)?;
        if resume {
            watch.make_up(trainer.step(), &trainer.adapter().failed("cannot take the adapter")?)?;
        }
        let ending = trainer.run(&mut watch).failed("training stopped")?;
        trainer.save().failed("cannot save the state")?;
        let adapter = trainer.adapter().failed("cannot take the adapter")?;
        let reports = watch.reports;
        let adapter_file = folder.save_adapter(&adapter, &base.model, &settings, trainer.step())?;
        session.written(ArtefactKind::Adapter, &adapter_file);
        match ending {
            Ending::Finished => folder.finish()?,
            Ending::Stopped { step, .. } => folder.note_stop(&settings, step)?,
        }
        Ok(Trained { adapter, adapter_file, settings, reports, ending })
    }
}
