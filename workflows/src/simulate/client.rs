//! An artist of a simulated federation.

use std::path::{Path, PathBuf};

use catelier_adapters::Adapter;
use catelier_adapters::file::{self, Format, Metadata};
use catelier_evaluation::Reference;
use catelier_federation::{Client, Contribution, Instructions, State};
use catelier_gallery::Artist;
use catelier_gallery::export::Source;
use catelier_pipelines::training::{Knowledge, StartingPoint};

use super::knowledge::Public;
use super::{Mishaps, Work};
use crate::error::{Context, Error, Result};
use crate::local_training::{At, LocalTraining};
use crate::run_folder::adapter_in;
use crate::settings::{ResolvedTrain, TrainSettings};
use crate::train::{Trained, TrainingData};
use crate::{drawn, images};

/// Seeds of a client's rounds are this far apart.
const SEEDS_A_ROUND: u64 = 1000;

/// The artist's whole update of the base in its last round, where a part of it is merged into the base.
const WHOLE: &str = "whole.safetensors";

/// An artist of a simulated federation: images that stay with it, and a trigger of its own.
pub(super) struct SimulatedClient<'a, 's> {
    pub(super) artist: &'static Artist,
    pub(super) trigger: String,
    pub(super) images: Vec<Reference>,
    work: Work<'a, 's>,
    /// Its position among the artists.
    place: usize,
    folder: PathBuf,
    data: TrainingData,
}

impl<'a, 's> SimulatedClient<'a, 's> {
    /// A client with `count` images drawn and encoded.
    pub(super) fn new(work: Work<'a, 's>, place: usize, artist: &'static Artist, count: usize) -> Result<Self> {
        let Work { base, settings, out, session } = work;
        let part = Path::new(artist.name).join(drawn::IMAGES);
        let drawn = drawn::draw(out, &part, Source::Artist(artist), count, settings.seed, session)?;
        let (trigger, folder) = (trigger_of(artist), out.path().join(artist.name));
        let training = work.training(&drawn, &trigger, settings.local_steps, SEEDS_A_ROUND)?;
        let data = TrainingData::load(base, &training, session)?;
        let images = images::read_references(Some(&drawn))?;
        Ok(Self { artist, trigger, images, work, place, folder, data })
    }

    /// The adapter of its last round as an update of the base.
    pub(super) fn own_adapter(&self) -> Result<Option<Adapter>> {
        let whole = self.folder.join(WHOLE);
        match whole.exists() {
            true => self.read(&whole).map(Some),
            false => self.last_trained(self.work.settings.rounds),
        }
    }

    /// `steps` steps of training at home on `adapter`, after the rounds; `name` names the run.
    pub(super) fn tune(&self, adapter: &Adapter, steps: usize, name: &str) -> Result<Adapter> {
        let settings = self.settings(steps, self.work.settings.rounds + 1)?;
        let personal = self.work.settings.plan().personal;
        let tuning = personal.as_ref().and_then(|personal| Some((personal, personal.tuning()?)));
        let tuning = tuning.as_ref().map(|(personal, phase)| (*personal, phase));
        Ok(self.training().tune(&settings, tuning, adapter, &self.folder.join(name))?.adapter)
    }

    /// `steps` steps of training from a fresh adapter, without any other artist.
    pub(super) fn alone(&self, steps: usize) -> Result<Adapter> {
        Ok(self.training().alone(&self.settings(steps, 1)?, &self.folder.join("alone"))?.adapter)
    }

    /// What it holds after the last round: the global adapter with its own personal tensors.
    pub(super) fn at_home(&self, state: &State, global: &Adapter) -> Result<Adapter> {
        let plan = self.work.settings.plan();
        let next = plan.configure(state.completed() + 1, state).failed("cannot read the state")?;
        let own = self.last_trained(self.work.settings.rounds)?;
        let start = next.starting_point(state.global(), own.as_ref()).failed("cannot start the tuning")?;
        Ok(start.filter(|_| next.merged.is_none()).unwrap_or_else(|| global.clone()))
    }

    /// Its images, encoded.
    pub(super) fn data(&self) -> &TrainingData {
        &self.data
    }

    fn settings(&self, steps: usize, round: usize) -> Result<ResolvedTrain> {
        let seed = SEEDS_A_ROUND.wrapping_mul(round as u64);
        let settings = self.work.training(&self.folder.join(drawn::IMAGES), &self.trigger, steps, seed)?;
        let rank = self.work.settings.rank(self.place);
        Ok(ResolvedTrain { rank, alpha: rank as f64, ..settings })
    }

    fn training(&self) -> LocalTraining<'_, 's> {
        LocalTraining { base: self.work.base, data: &self.data, towards: None, session: self.work.session }
    }

    fn round_folder(&self, round: usize) -> PathBuf {
        self.folder.join(format!("round-{round}"))
    }

    /// The adapter that it trained in the last round of which it was a part, up to `round`.
    fn last_trained(&self, round: usize) -> Result<Option<Adapter>> {
        let runs = (1..=round).rev().flat_map(|round| {
            let folder = self.round_folder(round);
            [folder.join("phase-2"), folder]
        });
        let mut files = runs.map(|run| adapter_in(&run, Format::Kohya));
        files.find(|file| file.exists()).map(|file| self.read(&file)).transpose()
    }

    fn read(&self, path: &Path) -> Result<Adapter> {
        let read = file::read(path, &self.work.base.model.modules()).failed("cannot read an adapter")?;
        match read.integrity.remark() {
            Some(remark) => Err(Error::user(
                format!("`{}` is not as it was saved: {remark}", path.display()),
                "restore it, or play the simulation again in another folder",
            )),
            None => Ok(read.adapter),
        }
    }

    /// A round in which knowledge travels: the adapter goes on from its own last one, on the artist's own images and towards
    /// what all know of the public ones.
    pub(super) fn learn(&self, round: usize, public: &Public<'_, '_>, of_all: Option<&Knowledge>) -> Result<Adapter> {
        let mishaps = Mishaps::new(self.work.settings);
        self.refuse_drop_out(round, &mishaps)?;
        let settings = self.settings(self.steps(round, &mishaps), round)?;
        let start = self.last_trained(round - 1)?.map(StartingPoint::from);
        let both = of_all.map(|_| public.data.before(&self.data));
        let local = LocalTraining { data: both.as_ref().unwrap_or(&self.data), towards: of_all, ..self.training() };
        let trained = local.run(&settings, start.as_ref(), &self.round_folder(round))?;
        mishaps.sent(trained.adapter, round, self.place)
    }

    fn refuse_drop_out(&self, round: usize, mishaps: &Mishaps) -> Result<()> {
        match mishaps.drops_out(round, self.place) {
            true => Err(Error::user("it dropped out of this round", "nothing is to be done: `drop_out` asked for it")),
            false => Ok(()),
        }
    }

    /// Half of the steps where the client is late.
    fn steps(&self, round: usize, mishaps: &Mishaps) -> usize {
        let steps = self.work.settings.local_steps;
        if mishaps.is_late(round, self.place) { steps.div_ceil(2) } else { steps }
    }

    /// Trains, late or not, and keeps the whole update where a part of it is merged.
    fn trained(&self, instructions: &Instructions, global: Option<&Adapter>) -> Result<Trained> {
        let Work { settings, .. } = self.work;
        let round = instructions.round;
        let steps = self.steps(round, &Mishaps::new(settings));
        let own = self.last_trained(round - 1)?;
        let mixed = settings.ranks.len() > 1;
        let at = At { global, own: own.as_ref(), rank: mixed.then(|| settings.rank(self.place)) };
        let folder = self.round_folder(round);
        let trained = self.training().follow(&self.settings(steps, round)?, instructions, at, &folder)?;
        if instructions.merged.is_some() {
            let whole = instructions.whole(&trained.adapter).failed("cannot add the merged update")?;
            file::write(&self.folder.join(WHOLE), &whole, Format::Kohya, &Metadata::default())
                .failed("cannot save an adapter")?;
        }
        Ok(trained)
    }
}

/// A word of its own for every artist, which means nothing to the base.
pub(crate) fn trigger_of(artist: &Artist) -> String {
    let consonants = artist.name.chars().filter(|letter| !"aeiou".contains(*letter)).take(3);
    format!("x{}", consonants.collect::<String>())
}

impl Client for SimulatedClient<'_, '_> {
    type Error = Error;

    fn name(&self) -> &str {
        self.artist.name
    }

    fn train(&mut self, round: usize, global: Option<&Adapter>) -> Result<Contribution> {
        self.follow(&Instructions { round, ..Instructions::default() }, global)
    }

    fn can_follow(&self, _: &Instructions) -> bool {
        true
    }

    fn follow(&mut self, instructions: &Instructions, global: Option<&Adapter>) -> Result<Contribution> {
        let (round, mishaps) = (instructions.round, Mishaps::new(self.work.settings));
        self.refuse_drop_out(round, &mishaps)?;
        let trained = self.trained(instructions, global)?;
        let sent = mishaps.sent(trained.adapter, round, self.place)?;
        let contribution = Contribution::from_examples(self.artist.name, sent, self.images.len());
        Ok(contribution.on_base(&self.work.base.model.fingerprint))
    }
}

impl Work<'_, '_> {
    /// The settings of a training of `steps` steps. All clients draw the same noise in a round, so that they differ by their
    /// images alone.
    pub(super) fn training(self, images: &Path, trigger: &str, steps: usize, seed: u64) -> Result<ResolvedTrain> {
        let settings = TrainSettings {
            images: Some(images.to_path_buf()),
            trigger: Some(trigger.to_string()),
            loss: Some(self.settings.loss),
            rank: Some(self.settings.rank(0)),
            steps: Some(steps),
            seed: Some(self.settings.seed.wrapping_add(seed)),
            drift_every: Some(0),
            ..TrainSettings::default()
        };
        settings.resolve(&self.base.defaults())
    }
}
