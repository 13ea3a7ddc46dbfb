//! `style train`: the head of a style model, by a federation of artists that is played in this process.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use catelier_features::ImageFeatures;
use catelier_numerics::bounded;
use catelier_style::federated::{Method, Outcome, Participant, Settings, run};
use catelier_style::{PooledTower, StyleHead};
use serde::Serialize;

use super::StyleModelRequest;
use super::works::Artists;
use crate::error::{Context, Error, Result};
use crate::event::{ArtefactKind, Stage};
use crate::output::{self, OutputFolder};
use crate::session::Session;
use crate::settings::{self, ResolvedStyleTrain, StyleTrainSettings};

const COMMAND: &str = "style train";
const SETTINGS: &str = "style.toml";
const TABLE: &str = "measures.json";

/// Settings that may change when a training is resumed.
const FREE_ON_RESUME: [&str; 1] = ["methods"];

/// Largest file with an outcome.
const LARGEST_OUTCOME: u64 = 1 << 20;

/// The training of a style model as it is asked for.
#[derive(Debug, Clone, Default)]
pub struct StyleTrainRequest {
    /// What to train, and how. A training to resume has its own settings; of these, it takes `methods` and refuses others.
    pub settings: StyleTrainSettings,
    /// Go on after the last method that is saved in `out`.
    pub resume: bool,
    /// Where the heads and the measures go.
    pub out: PathBuf,
    /// Write beside files in `out` that no training made; files in the way are refused all the same.
    pub force: bool,
}

/// A training that is done, as `style train --json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StyleTrainReport {
    /// Number of artists.
    pub artists: usize,
    /// Number of public artists.
    pub public: usize,
    /// Works that were searched for.
    pub held_out: usize,
    /// What every method achieved, in the order that was asked for.
    pub outcomes: Vec<Outcome>,
}

/// Trains as `request` says. Every method's outcome is saved when it is done; a resumed training gives the same bytes as one
/// that never stopped.
///
/// # Errors
/// [`Error::User`] for settings, pictures or a folder that cannot be used, [`Error::Failed`] when training or the disk
/// fails, [`Error::Cancelled`].
pub fn train(request: &StyleTrainRequest, session: &Session<'_>) -> Result<StyleTrainReport> {
    let (out, settings) = request.prepare(session)?;
    let tower = settings.model().open_tower()?;
    let (artists, public) = settings.look(&tower, session)?;
    let mut outcomes = Vec::new();
    for method in settings.methods.iter().map(|method| method.0) {
        let work = Work { out: &out, settings: &settings, tower: &tower, artists: &artists, public: &public, session };
        outcomes.push(match work.saved(method)? {
            Some(outcome) => outcome,
            None => work.train(method)?,
        });
    }
    let held_out = artists.iter().map(|artist| artist.held_out.len()).sum();
    let report = StyleTrainReport { artists: artists.len(), public: public.len(), held_out, outcomes };
    let text = serde_json::to_string_pretty(&report).failed("cannot write the measures")?;
    output::write_text(&out.path().join(TABLE), &(text + "\n"))?;
    session.written(ArtefactKind::Scores, out.path().join(TABLE));
    out.finish()?;
    Ok(report)
}

impl StyleTrainRequest {
    /// The folder and the settings.
    fn prepare(&self, session: &Session<'_>) -> Result<(OutputFolder, ResolvedStyleTrain)> {
        let saved = self.out.join(SETTINGS);
        if self.resume && !saved.exists() {
            return Err(Error::user(
                format!("`{}` holds no training of a style model to resume", self.out.display()),
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
        settings.validate()?;
        if !self.resume && saved.exists() && !out.was_finished() {
            return Err(Error::user(
                format!("`{}` holds a training of a style model that is not finished", self.out.display()),
                "go on with it by `--resume`, or choose another `--out`",
            ));
        }
        match self.resume {
            true => out.begin()?,
            false => out.clear(Path::new(""), &is_made)?,
        }
        settings::save(&saved, &settings)?;
        Ok((out, settings))
    }
}

/// Whether a training gives a file this name.
fn is_made(file: &Path) -> bool {
    let is_one_of =
        |name: &str| Method::all().iter().any(|method| name == outcome_of(*method) || name == head_of(*method));
    let name = file.to_string_lossy();
    file.components().count() == 1 && (name == SETTINGS || name == TABLE || is_one_of(&name))
}

fn outcome_of(method: Method) -> String {
    format!("{method}.json")
}

fn head_of(method: Method) -> String {
    format!("{method}.safetensors")
}

impl ResolvedStyleTrain {
    /// Refuses settings that nothing can be trained with.
    ///
    /// # Errors
    /// [`Error::User`] names the first one.
    pub fn validate(&self) -> Result<()> {
        self.federation().validate().user_error("cannot train a style model with these settings")?;
        if !(self.held_out > 0.0 && self.held_out < 1.0) {
            return Err(Error::user(format!("`held_out` is {}", self.held_out), "give a share above 0 and below 1"));
        }
        if self.images.is_none() && self.drawn_works < 3 {
            return Err(Error::user(
                format!("`drawn_works` is {}", self.drawn_works),
                "ask for at least 3 pictures: two to learn from, and one that is held out",
            ));
        }
        Ok(())
    }

    fn model(&self) -> StyleModelRequest {
        StyleModelRequest { tower: self.tower.clone(), pooling: self.pooling.0, head: None }
    }

    /// The settings of the federation.
    fn federation(&self) -> Settings {
        Settings {
            rounds: self.rounds,
            local_epochs: self.local_epochs,
            batch: self.batch,
            learning_rate: self.learning_rate,
            width: self.width,
            strategy: self.strategy.0.clone(),
            measure_every: self.measure_every,
            seed: self.seed,
            ..Settings::default()
        }
    }

    /// The works of the artists and of the public set.
    fn look(&self, tower: &PooledTower, session: &Session<'_>) -> Result<(Vec<Participant>, Vec<Participant>)> {
        let artists = match &self.images {
            Some(folder) => Artists::in_folder(folder)?,
            None => Artists::drawn(self.drawn_works, self.seed),
        };
        let public = match (&self.public, &self.images) {
            (Some(folder), _) => Some(Artists::in_folder(folder)?),
            (None, None) if self.drawn_public > 0 => {
                Some(Artists::random(self.drawn_public, self.drawn_works, self.seed))
            }
            (None, _) => None,
        };
        let look = |artists: &Artists| artists.look(tower, self.held_out, self.seed, session);
        Ok((look(&artists)?, public.as_ref().map(look).transpose()?.unwrap_or_default()))
    }
}

/// A training with everything loaded.
struct Work<'w, 's> {
    out: &'w OutputFolder,
    settings: &'w ResolvedStyleTrain,
    tower: &'w PooledTower,
    artists: &'w [Participant],
    public: &'w [Participant],
    session: &'w Session<'s>,
}

impl Work<'_, '_> {
    /// The outcome of a method that an earlier run of this training finished.
    fn saved(&self, method: Method) -> Result<Option<Outcome>> {
        let path = self.out.path().join(outcome_of(method));
        if !path.exists() {
            return Ok(None);
        }
        let attempt = || format!("cannot read `{}`", path.display());
        let text = bounded::read_text(&path, LARGEST_OUTCOME).user_error(attempt())?;
        let (object, Some(true)) = output::split_line(text.trim_end()) else {
            return Err(Error::user(
                format!("`{}` is not as it was saved: its checksum does not hold", path.display()),
                "remove it, and the method is trained again",
            ));
        };
        Ok(Some(serde_json::from_str(&object).user_error(attempt())?))
    }

    fn train(&self, method: Method) -> Result<Outcome> {
        let federation = self.settings.federation();
        let mut observe = |round: usize| self.session.progress(Stage::Rounds, round, federation.rounds, method.name());
        if let ControlFlow::Break(()) = observe(0) {
            return Err(Error::Cancelled);
        }
        let trained = run(method, self.artists, self.public, &federation, &mut observe);
        let trained = trained.user_error(format!("cannot train by `{method}`"))?;
        if let Some(head) = &trained.head {
            self.save(method, head)?;
        }
        for refusal in &trained.outcome.refused {
            self.session.warn(refusal);
        }
        // Last: a method with an outcome is done.
        let line = serde_json::to_string(&trained.outcome).failed("cannot describe an outcome")?;
        output::write_text(&self.out.path().join(outcome_of(method)), &(output::line_with_sum(&line) + "\n"))?;
        Ok(trained.outcome)
    }

    fn save(&self, method: Method, head: &StyleHead) -> Result<()> {
        let path = self.out.path().join(head_of(method));
        let mut facts = BTreeMap::from([
            ("method".to_owned(), method.to_string()),
            ("artists".to_owned(), self.artists.len().to_string()),
            ("seed".to_owned(), self.settings.seed.to_string()),
        ]);
        if matches!(method, Method::Fedstyle(_)) {
            facts
                .insert("note".to_owned(), "FedStyle, reconstructed: its paper's losses were not available".to_owned());
        }
        head.save(&path, self.tower.extractor(), &facts).failed("cannot save the head")?;
        self.session.written(ArtefactKind::StyleModel, path);
        Ok(())
    }
}
