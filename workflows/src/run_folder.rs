//! What a training run leaves on disk: settings, metrics, previews, state, the adapter and its card.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use catelier_adapters::Adapter;
use catelier_adapters::file::{self, Format, Metadata, TrainedOn};
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::training::{StateFolder, StepReport};
use serde::{Deserialize, Serialize};

use crate::base::EMBEDDED;
use crate::error::{Context, Error, Result};
use crate::output::{self, OutputFolder};
use crate::session::Session;
use crate::settings::{self, ResolvedTrain};

/// The command that makes run folders.
const COMMAND: &str = "train";

const SETTINGS: &str = "run.toml";
const METRICS: &str = "metrics.jsonl";
const CARD: &str = "README.md";
const STATES: &str = "state";
const PREVIEWS: &str = "previews";
const ADAPTER: &str = "adapter.safetensors";
/// PEFT wants a folder.
const PEFT_ADAPTER: &str = "adapter";

/// The folder of one run.
#[derive(Debug)]
pub struct RunFolder(OutputFolder);

/// One line of `metrics.jsonl`, to which a checksum is added.
#[derive(Serialize)]
struct MetricsLine<'a> {
    run: &'a str,
    #[serde(flatten)]
    report: &'a StepReport,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
}

/// What a line of `metrics.jsonl` says, where an older program wrote no `run`.
#[derive(Deserialize)]
struct Step {
    step: usize,
    run: Option<String>,
}

impl RunFolder {
    /// A folder for a new run; one that holds a run already is refused, so that no work is lost. With `force`, the run is
    /// written beside files that no run made.
    ///
    /// # Errors
    /// [`Error::User`] for a folder that holds a run, a file in the way that no run made, and a folder in use.
    pub fn create(folder: &Path, force: bool, session: &Session<'_>) -> Result<Self> {
        let holds = |name: &str| folder.join(name).exists();
        if holds(ADAPTER) || holds(PEFT_ADAPTER) || !StateFolder::new(folder.join(STATES)).is_empty() {
            return Err(Error::user(
                format!("`{}` already holds a run", folder.display()),
                "go on with it by `--resume`, or choose another `--out`",
            ));
        }
        let run = OutputFolder::claim(folder, COMMAND, force, session)?;
        run.refuse_unknown(&[SETTINGS, METRICS, STATES, PREVIEWS])?;
        // A run that was killed before its first state has settings, metrics and previews, and no card.
        run.refuse(&[CARD])?;
        Ok(Self(run))
    }

    /// A folder for a new run in place of an earlier one.
    ///
    /// # Errors
    /// [`Error::User`] names a file that no run made, and then nothing is deleted.
    pub fn replace(folder: &Path, session: &Session<'_>) -> Result<Self> {
        let run = OutputFolder::claim(folder, COMMAND, false, session)?;
        run.clear(Path::new(""), &made_by_a_run)?;
        Ok(Self(run))
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Marks the folder as that of a run: settings, metrics and states are written from now on.
    ///
    /// # Errors
    /// [`Error::Failed`] when the marker cannot be written.
    pub(crate) fn begin(&self) -> Result<()> {
        self.0.begin()
    }

    /// The folder of a run to go on with.
    ///
    /// # Errors
    /// [`Error::User`] for a folder without one, and for a folder in use.
    pub fn open(folder: &Path, session: &Session<'_>) -> Result<Self> {
        if !folder.join(SETTINGS).exists() {
            return Err(Error::user(
                format!("`{}` holds no run to resume", folder.display()),
                "start the run without `--resume`",
            ));
        }
        OutputFolder::reopen(folder, COMMAND, session).map(Self)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The resolved settings.
    pub fn settings(&self) -> PathBuf {
        self.file(SETTINGS)
    }

    /// The saved states.
    pub fn states(&self) -> StateFolder {
        StateFolder::new(self.file(STATES))
    }

    /// Where the adapter goes.
    pub fn adapter(&self, format: Format) -> PathBuf {
        adapter_in(self.0.path(), format)
    }

    /// Where the preview after `step` goes.
    pub fn preview(&self, step: usize) -> PathBuf {
        self.file(PREVIEWS).join(format!("step-{step:06}.png"))
    }

    /// Saves the settings that repeat this run.
    ///
    /// # Errors
    /// [`Error::Failed`] when the file cannot be written.
    pub fn save_settings(&self, settings: &ResolvedTrain) -> Result<()> {
        settings::save(&self.settings(), settings)
    }

    /// Notes in the settings how far a stopped run came; they still repeat the whole run.
    ///
    /// # Errors
    /// [`Error::Failed`] when the file cannot be written.
    pub(crate) fn note_stop(&self, settings: &ResolvedTrain, steps_made: usize) -> Result<()> {
        let steps = settings.steps;
        let note = format!("# stopped after {steps_made} of {steps} steps; `catelier train --resume` goes on\n");
        settings::save_with_note(&self.settings(), &note, settings)
    }

    /// Adds one step of the run `run` to the metrics.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn add_metrics(
        &self,
        run: &str,
        report: &StepReport,
        seconds: f64,
        peak_memory: Option<u64>,
    ) -> std::io::Result<()> {
        let line = serde_json::to_string(&MetricsLine { run, report, seconds, peak_memory_bytes: peak_memory })?;
        let line = output::line_with_sum(&line) + "\n";
        OpenOptions::new().create(true).append(true).open(self.file(METRICS))?.write_all(line.as_bytes())
    }

    /// Sees to it that the metrics outlive a power loss, as the state does that is saved next.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync_metrics(&self) -> std::io::Result<()> {
        OpenOptions::new().append(true).open(self.file(METRICS))?.sync_data()
    }

    /// Keeps the metrics of the run `run` until `step`, one line for each step: a resumed run makes the others again, and
    /// lines of other runs, or with a checksum that does not hold, are none. How many were left out for these two reasons.
    ///
    /// # Errors
    /// [`Error::Failed`] when the file cannot be read or written.
    pub fn keep_metrics_until(&self, step: usize, run: &str) -> Result<usize> {
        let path = self.file(METRICS);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            bytes => String::from_utf8_lossy(&bytes.failed(format!("cannot read `{}`", path.display()))?).into_owned(),
        };
        let mut kept = BTreeMap::new();
        let mut left_out = 0;
        // A last line without an end was being written when the run was killed.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            match step_of(line.trim_end(), run) {
                Some(found) if found <= step => drop(kept.entry(found).or_insert(line)),
                Some(_) => {}
                None => left_out += 1,
            }
        }
        output::write_text(&path, &kept.into_values().collect::<String>())?;
        Ok(left_out)
    }

    /// Saves the adapter, with what it is and how it was made in its header, and its card; the file or folder of it. Both
    /// say that it has learned for `steps_made`, whatever the settings ask for.
    ///
    /// # Errors
    /// [`Error::Failed`] when a file cannot be written.
    pub fn save_adapter(
        &self,
        adapter: &Adapter,
        base: &BaseModel,
        settings: &ResolvedTrain,
        steps_made: usize,
    ) -> Result<PathBuf> {
        let path = self.adapter(settings.format);
        let made = ResolvedTrain { steps: steps_made, ..settings.clone() };
        file::write(&path, adapter, settings.format, &metadata(base, &made)?).failed("cannot save the adapter")?;
        output::write_text(&self.file(CARD), &card(base, adapter, settings, steps_made))?;
        Ok(path)
    }

    /// Notes that the run came to its end.
    ///
    /// # Errors
    /// [`Error::Failed`] when the marker cannot be written.
    pub fn finish(&self) -> Result<()> {
        self.0.finish()
    }
}

/// Where the adapter of the run in `folder` goes.
pub(crate) fn adapter_in(folder: &Path, format: Format) -> PathBuf {
    match format {
        Format::Peft => folder.join(PEFT_ADAPTER),
        _ => folder.join(ADAPTER),
    }
}

/// The step of a whole line of the run `run`.
fn step_of(line: &str, run: &str) -> Option<usize> {
    let (object, holds) = output::split_line(line);
    let step: Step = serde_json::from_str(&object).ok()?;
    let is_of_run = step.run.is_none_or(|found| found == run);
    (holds != Some(false) && is_of_run).then_some(step.step)
}

/// Whether a run leaves a file of this path in its folder.
fn made_by_a_run(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let folder = file.parent().unwrap_or(Path::new("")).to_string_lossy();
    let step = |extension: &str| name.starts_with("step-") && name.ends_with(extension);
    match &*folder {
        "" => [SETTINGS, METRICS, CARD, ADAPTER].contains(&&*name),
        STATES => step(".safetensors"),
        PREVIEWS => step(".png"),
        PEFT_ADAPTER => ["adapter_model.safetensors", "adapter_config.json"].contains(&&*name),
        _ => false,
    }
}

fn metadata(base: &BaseModel, settings: &ResolvedTrain) -> Result<Metadata> {
    let side = settings.resolution as u32;
    Ok(Metadata {
        trigger: Some(settings.trigger.clone()),
        base: TrainedOn {
            family: Some(base.family),
            prediction: Some(base.schedule.prediction()),
            resolution: Some((side, side)),
            name: Some(base.name.clone()),
            fingerprint: Some(base.fingerprint.clone()),
        },
        settings: Some(settings.for_metadata()?),
        ..Metadata::default()
    })
}

/// The model card that hubs and people read.
fn card(base: &BaseModel, adapter: &Adapter, settings: &ResolvedTrain, steps_made: usize) -> String {
    let loss = serde_json::to_value(settings.loss).unwrap_or_default();
    let file = if settings.format == Format::Peft { PEFT_ADAPTER } else { ADAPTER };
    let on_base = if settings.base == EMBEDDED { String::new() } else { format!(" --base {}", base.name) };
    format!(
        "---\nbase_model: {base}\nlibrary_name: diffusers\ninstance_prompt: {trigger}\ntags:\n- text-to-image\n- lora\n- \
         template:sd-lora\n- catelier\n---\n\n# {trigger}\n\nA style adapter ({kind}, {rank}) for `{base}`, trained \
         for {steps} steps with the `{loss}` loss.\n\n## Trigger\n\nPut `{trigger}` in the prompt to call the style. \
         Without it, images are meant to stay as the base generates them.\n\n## Use\n\n```\ncatelier preview{on_base} --adapter \
         {file} --prompt \"{trigger}, a red house in a field\" --compare --out images\n```\n\n\
         `run.toml` repeats the training; `metrics.jsonl` has its curves.\n",
        base = base.name,
        trigger = settings.trigger,
        kind = settings.kind,
        rank = adapter.uniform_rank().map_or_else(|| "several ranks".into(), |rank| format!("rank {rank}")),
        steps = match settings.steps {
            steps if steps == steps_made => steps.to_string(),
            steps => format!("{steps_made} of {steps}"),
        },
        loss = loss.as_str().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "0123456789abcdef";

    fn session() -> Session<'static> {
        Session::new(|_| {})
    }

    fn with_file(name: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        output::write_text(&path, "precious").unwrap();
        folder
    }

    fn report(step: usize) -> StepReport {
        StepReport {
            step,
            steps: 9,
            loss: 0.5,
            denoising: 0.5,
            cat: None,
            prior: None,
            drift: None,
            gradient_norm: 1.0,
            learning_rate: 1e-4,
            text_encoder_learning_rate: None,
        }
    }

    #[test]
    fn a_new_run_takes_no_folder_with_files_that_no_run_made() {
        for name in ["README.md", "run.toml", "metrics.jsonl", "previews/mine.png", "state/notes.txt", "notes.txt"] {
            let folder = with_file(name);
            let error = RunFolder::create(folder.path(), false, &session()).unwrap_err();
            assert!(error.is_user_error() && error.to_string().contains("is in the way"), "{error}");
            let forced = RunFolder::create(folder.path(), true, &session());
            assert_eq!(forced.is_ok(), name == "notes.txt", "{name}");
        }
    }

    #[test]
    fn a_card_that_was_written_into_an_unfinished_run_is_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path(), false, &session()).unwrap();
        run.begin().unwrap();
        run.add_metrics(RUN, &report(1), 1.0, None).unwrap();
        drop(run);
        RunFolder::create(folder.path(), false, &session()).unwrap();
        output::write_text(&folder.path().join(CARD), "precious").unwrap();
        let error = RunFolder::create(folder.path(), false, &session()).unwrap_err();
        assert!(error.is_user_error() && error.to_string().contains("README.md` is in the way"), "{error}");
    }

    #[test]
    fn only_a_run_is_replaced_and_only_its_own_files() {
        let foreign = with_file("state/step-000001.safetensors");
        assert!(RunFolder::replace(foreign.path(), &session()).is_err());
        assert!(foreign.path().join("state/step-000001.safetensors").exists());

        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let first = RunFolder::replace(&run, &session()).unwrap();
        first.add_metrics(RUN, &report(1), 1.0, None).unwrap();
        drop(first);
        for name in ["state", "state/diary"] {
            fs::create_dir_all(run.join(name)).unwrap();
        }
        output::write_text(&run.join("state/step-000001.safetensors"), "").unwrap();
        output::write_text(&run.join("state/diary/monday.txt"), "precious").unwrap();
        let error = RunFolder::replace(&run, &session()).unwrap_err().to_string();
        assert!(error.contains("state/diary/monday.txt"), "{error}");
        fs::remove_file(run.join("state/diary/monday.txt")).unwrap();
        fs::remove_dir(run.join("state/diary")).unwrap();
        let replaced = RunFolder::replace(&run, &session()).unwrap();
        assert!(!run.join("state").exists() && !run.join(METRICS).exists());
        drop(replaced);
    }

    #[test]
    fn metrics_are_those_of_one_run_and_of_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path(), false, &session()).unwrap();
        for (id, step) in [("another run", 1), (RUN, 1), (RUN, 2), (RUN, 3), (RUN, 3), (RUN, 4)] {
            run.add_metrics(id, &report(step), 1.0, None).unwrap();
        }
        let path = folder.path().join(METRICS);
        let whole = fs::read_to_string(&path).unwrap();
        let steps = || {
            let text = fs::read_to_string(&path).unwrap();
            text.lines().map(|line| step_of(line, RUN).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run.keep_metrics_until(3, RUN).unwrap(), 1);
        assert_eq!(steps(), [1, 2, 3]);

        // Killed in the middle of a line.
        fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        assert_eq!(run.keep_metrics_until(4, RUN).unwrap(), 1);
        run.add_metrics(RUN, &report(4), 1.0, None).unwrap();
        assert_eq!(steps(), [1, 2, 3, 4]);

        // Damaged, also beyond UTF-8.
        let mut bytes = fs::read(&path).unwrap();
        let place = bytes.windows(4).position(|window| window == b"loss").unwrap();
        bytes[place] = 0xff;
        fs::write(&path, bytes).unwrap();
        assert_eq!(run.keep_metrics_until(4, RUN).unwrap(), 1);
        assert_eq!(steps(), [2, 3, 4]);
        assert_eq!(run.keep_metrics_until(0, RUN).unwrap(), 0);
        assert!(steps().is_empty());
    }

    #[test]
    fn metrics_of_programs_that_wrote_no_checksum_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path(), false, &session()).unwrap();
        let old = serde_json::to_string(&report(1)).unwrap() + "\n";
        output::write_text(&folder.path().join(METRICS), &old).unwrap();
        assert_eq!(run.keep_metrics_until(1, RUN).unwrap(), 0);
        assert_eq!(fs::read_to_string(folder.path().join(METRICS)).unwrap(), old);
    }
}
