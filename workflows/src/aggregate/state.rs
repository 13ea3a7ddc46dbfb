//! The folder of a federation's state: one file for each of the last two rounds, and the plan.

use std::fs;
use std::path::{Path, PathBuf};

use catelier_federation::{RoundPlan, State};
use catelier_numerics::bounded;
use catelier_numerics::tensor_file::{CHECKSUM, TensorFile};
use serde::{Deserialize, Serialize};

use super::COMMAND;
use crate::error::{Context, Error, Result};
use crate::output::{self, OutputFolder, line_with_sum, split_line};
use crate::session::Session;

/// Name of the plan's file.
const PLAN: &str = "plan.json";

const LARGEST_PLAN: u64 = 2 << 20;

/// Where the state of a round that is closed once more is written, to be compared.
const AGAIN: &str = "again.safetensors";

/// A claimed folder of states. The state after a round never replaces the state before it, so that a round can be closed
/// again until the next one is.
pub(super) struct StateFolder {
    folder: OutputFolder,
    plan: RoundPlan,
    is_new: bool,
}

/// `plan.json`.
#[derive(Serialize, Deserialize)]
struct PlanFile {
    format: String,
    version: u32,
    plan: RoundPlan,
}

const FORMAT: &str = "catelier federation plan";
const VERSION: u32 = 1;

impl StateFolder {
    /// The folder at `path`, locked.
    ///
    /// # Errors
    /// [`Error::User`] for a folder that holds something else, or the state of another plan.
    pub(super) fn claim(path: &Path, plan: &RoundPlan, session: &Session<'_>) -> Result<Self> {
        let folder = OutputFolder::claim(path, COMMAND, false, session)?;
        let is_new = !path.join(PLAN).exists();
        if !is_new {
            refuse_another_plan(&path.join(PLAN), plan)?;
        }
        Ok(Self { folder, plan: plan.clone(), is_new })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Whether there is no state yet.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// The state before a round, from 1.
    ///
    /// # Errors
    /// [`Error::User`] for a state that is not there any more, or not yet, or is damaged.
    pub(super) fn before(&self, round: usize) -> Result<State> {
        let path = self.file(round - 1);
        if !path.exists() {
            let newest = (0..round + 2).rev().find(|round| self.file(*round).exists());
            let newest = newest.map_or("no round".to_owned(), |newest| format!("round {newest} as the newest"));
            return Err(Error::user(
                format!("`{}` does not hold the state before round {round}", self.path().display()),
                format!("it has {newest}; the last two are kept"),
            ));
        }
        let state = State::load(&path).user_error("cannot go on with this state")?;
        match state.completed() == round - 1 {
            true => Ok(state),
            false => Err(Error::user(
                format!("`{}` holds the state of round {}", path.display(), state.completed()),
                "restore the folder",
            )),
        }
    }

    /// Refuses to close a round a second time with another result.
    ///
    /// # Errors
    /// [`Error::User`] if the round is closed, and not with this state.
    pub(super) fn refuse_another(&self, round: usize, after: &State) -> Result<()> {
        if !self.file(round).exists() || self.is_saved(round, after)? {
            return Ok(());
        }
        Err(Error::user(
            format!("round {round} is closed, with other contributions or another start"),
            format!("go on with round {}, or play it in another `--state`", round + 1),
        ))
    }

    /// Whether the state after a round is this one.
    pub(super) fn is_saved(&self, round: usize, state: &State) -> Result<bool> {
        self.folder.begin()?;
        let again = self.path().join(AGAIN);
        state.save(&again).failed("cannot save the state")?;
        let is_same = checksum(&again)? == checksum(&self.file(round))?;
        fs::remove_file(&again).failed(format!("cannot remove `{}`", again.display()))?;
        Ok(is_same)
    }

    /// Saves the state after a round, and in the first one what it began with.
    pub(super) fn save_both(&self, round: usize, before: &State, after: &State) -> Result<()> {
        if self.is_new {
            self.save(round - 1, before)?;
        }
        self.save(round, after)?;
        if let Some(old) = round.checked_sub(2).map(|old| self.file(old)).filter(|old| old.exists()) {
            fs::remove_file(&old).failed(format!("cannot remove `{}`", old.display()))?;
        }
        Ok(())
    }

    /// Saves the state after a round, unless it is there.
    pub(super) fn save(&self, round: usize, state: &State) -> Result<()> {
        self.folder.begin()?;
        let path = self.file(round);
        // Without a plan beside it, a file is what a killed command left.
        if self.path().join(PLAN).exists() && path.exists() {
            return Ok(());
        }
        state.save(&path).failed("cannot save the state")?;
        if self.is_new && !self.path().join(PLAN).exists() {
            self.save_plan()?;
        }
        Ok(())
    }

    pub(super) fn finish(&self) -> Result<()> {
        self.folder.finish()
    }

    fn file(&self, round: usize) -> PathBuf {
        self.path().join(format!("state-{round:04}.safetensors"))
    }

    fn save_plan(&self) -> Result<()> {
        let file = PlanFile { format: FORMAT.into(), version: VERSION, plan: self.plan.clone() };
        let text = serde_json::to_string(&file).failed("cannot write the plan")?;
        output::write_text(&self.path().join(PLAN), &(line_with_sum(&text) + "\n"))
    }
}

fn checksum(path: &Path) -> Result<Option<String>> {
    let file = TensorFile::open(path).user_error("cannot read a state")?;
    Ok(file.metadata().get(CHECKSUM).cloned())
}

/// Refuses a plan that is not the one in the file; only the number of rounds may change.
fn refuse_another_plan(path: &Path, plan: &RoundPlan) -> Result<()> {
    let text = bounded::read_text(path, LARGEST_PLAN).user_error(format!("cannot read `{}`", path.display()))?;
    let (object, holds) = split_line(text.trim_end());
    if holds != Some(true) {
        return Err(Error::user(
            format!("`{}` is damaged: its checksum does not hold", path.display()),
            "restore it, or begin again with another `--state`",
        ));
    }
    let file: PlanFile = serde_json::from_str(&object).user_error(format!("`{}` is no plan", path.display()))?;
    if file.format != FORMAT || file.version > VERSION {
        let message = format!("`{}` is a `{}` of version {}", path.display(), file.format, file.version);
        return Err(Error::user(message, "use the program that made this folder"));
    }
    if (RoundPlan { rounds: plan.rounds, ..file.plan.clone() }) == *plan {
        return Ok(());
    }
    Err(Error::user(
        format!("the state in `{}` is of `{}` with another plan", path.display(), file.plan.strategy),
        "give the plan of the first round, or begin again with another `--state`",
    ))
}
