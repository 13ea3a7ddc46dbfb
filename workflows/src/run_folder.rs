//! What a training run leaves on disk: settings, metrics, previews, state, the adapter and its card.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use catelier_adapters::Adapter;
use catelier_adapters::file::{self, Format, Metadata, TrainedOn};
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::training::{StateFolder, StepReport};
use serde::Serialize;

use crate::base::EMBEDDED;
use crate::error::{Context, Error, Result};
use crate::output::{self, MARKER, OutputFolder};
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
#[derive(Debug, Clone)]
pub struct RunFolder(OutputFolder);

/// One line of `metrics.jsonl`.
#[derive(Serialize)]
struct MetricsLine<'a> {
    #[serde(flatten)]
    report: &'a StepReport,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
}

impl RunFolder {
    /// A folder for a new run; one that holds a run already is refused, so that no work is lost.
    ///
    /// # Errors
    /// [`Error::User`] for a folder that holds a run, or a file in the way that no run made.
    pub fn create(folder: &Path) -> Result<Self> {
        let holds = |name: &str| folder.join(name).exists();
        if holds(ADAPTER) || holds(PEFT_ADAPTER) || !StateFolder::new(folder.join(STATES)).is_empty() {
            return Err(Error::user(
                format!("`{}` already holds a run", folder.display()),
                "go on with it by `--resume`, or choose another `--out`",
            ));
        }
        let marked = output::Marker::read(folder)?.is_some();
        let in_the_way = [SETTINGS, METRICS, CARD, STATES, PREVIEWS].into_iter().find(|name| holds(name));
        match in_the_way {
            Some(name) if !marked => Err(Error::user(
                format!("`{}` is in the way, and no run of this program made it", folder.join(name).display()),
                "choose another `--out`, or move the file away",
            )),
            _ => Ok(Self(OutputFolder::at(folder, COMMAND)?)),
        }
    }

    /// A folder for a new run in place of an earlier one.
    ///
    /// # Errors
    /// [`Error::User`] names a file that no run made, and then nothing is deleted.
    pub fn replace(folder: &Path) -> Result<Self> {
        let run = OutputFolder::claim(folder, COMMAND)?;
        run.clear(Path::new(""), &made_by_a_run)?;
        let run = Self::create(folder)?;
        run.begin()?;
        Ok(run)
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
    /// [`Error::User`] for a folder without one.
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.join(SETTINGS).exists() {
            return Err(Error::user(
                format!("`{}` holds no run to resume", folder.display()),
                "start the run without `--resume`",
            ));
        }
        Ok(Self(OutputFolder::at(folder, COMMAND)?))
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
        match format {
            Format::Peft => self.file(PEFT_ADAPTER),
            _ => self.file(ADAPTER),
        }
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

    /// Adds one step to the metrics.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn add_metrics(&self, report: &StepReport, seconds: f64, peak_memory: Option<u64>) -> std::io::Result<()> {
        let mut line = serde_json::to_string(&MetricsLine { report, seconds, peak_memory_bytes: peak_memory })?;
        line.push('\n');
        OpenOptions::new().create(true).append(true).open(self.file(METRICS))?.write_all(line.as_bytes())
    }

    /// Forgets the metrics of steps after `step`, which a resumed run makes again.
    ///
    /// # Errors
    /// [`Error::Failed`] when the file cannot be written.
    pub fn keep_metrics_until(&self, step: usize) -> Result<()> {
        let Ok(text) = fs::read_to_string(self.file(METRICS)) else { return Ok(()) };
        let step_of = |line: &str| serde_json::from_str::<StepReport>(line).ok().map(|report| report.step);
        let kept = text.lines().filter(|line| step_of(line).is_some_and(|found| found <= step));
        output::write_text(&self.file(METRICS), &kept.map(|line| format!("{line}\n")).collect::<String>())
    }

    /// Saves the adapter, with what it is and how it was made in its header, and its card; the file or folder of it.
    ///
    /// # Errors
    /// [`Error::Failed`] when a file cannot be written.
    pub fn save_adapter(&self, adapter: &Adapter, base: &BaseModel, settings: &ResolvedTrain) -> Result<PathBuf> {
        let path = self.adapter(settings.format);
        file::write(&path, adapter, settings.format, &metadata(base, settings)?).failed("cannot save the adapter")?;
        output::write_text(&self.file(CARD), &card(base, adapter, settings))?;
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

/// Whether a run leaves a file of this path in its folder.
fn made_by_a_run(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let folder = file.parent().unwrap_or(Path::new("")).to_string_lossy();
    let step = |extension: &str| name.starts_with("step-") && name.ends_with(extension);
    // A write that was killed leaves its temporary file.
    if name.starts_with('.') && name.ends_with(".partial") {
        return ["", STATES, PREVIEWS, PEFT_ADAPTER].contains(&&*folder);
    }
    match &*folder {
        "" => [MARKER, SETTINGS, METRICS, CARD, ADAPTER].contains(&&*name),
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
fn card(base: &BaseModel, adapter: &Adapter, settings: &ResolvedTrain) -> String {
    let loss = serde_json::to_value(settings.loss).unwrap_or_default();
    let file = if settings.format == Format::Peft { PEFT_ADAPTER } else { ADAPTER };
    let on_base = if settings.base == EMBEDDED { String::new() } else { format!(" --base {}", base.name) };
    format!(
        "---\nbase_model: {base}\nlibrary_name: diffusers\ninstance_prompt: {trigger}\ntags:\n- text-to-image\n- lora\n- \
         template:sd-lora\n- catelier\n---\n\n# {trigger}\n\nA style adapter ({kind}, {rank}) for `{base}`, trained \
         for {steps} steps with the `{loss}` loss.\n\n## Trigger\n\nPut `{trigger}` in the prompt to call the style. \
         Without it, images are meant to stay as the base generates them.\n\n## Use\n\n```\ncatelier preview{on_base} --adapter \
         {file} --prompt \"{trigger}, a red house in a field\" --compare --out previews\n```\n\n\
         `run.toml` repeats the training; `metrics.jsonl` has its curves.\n",
        base = base.name,
        trigger = settings.trigger,
        kind = settings.kind,
        rank = adapter.uniform_rank().map_or_else(|| "several ranks".into(), |rank| format!("rank {rank}")),
        steps = settings.steps,
        loss = loss.as_str().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(name: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        output::write_text(&path, "precious").unwrap();
        folder
    }

    #[test]
    fn a_new_run_takes_no_file_that_no_run_made() {
        for name in ["README.md", "metrics.jsonl", "previews/mine.png", "state/notes.txt"] {
            let folder = with_file(name);
            let error = RunFolder::create(folder.path()).unwrap_err();
            assert!(error.is_user_error() && error.to_string().contains("is in the way"), "{error}");
        }
        let beside = with_file("notes.txt");
        RunFolder::create(beside.path()).unwrap();
    }

    #[test]
    fn only_a_run_is_replaced_and_only_its_own_files() {
        let foreign = with_file("state/step-000001.safetensors");
        assert!(RunFolder::replace(foreign.path()).is_err());
        assert!(foreign.path().join("state/step-000001.safetensors").exists());

        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        RunFolder::replace(&run).unwrap();
        for name in ["state", "state/diary"] {
            fs::create_dir_all(run.join(name)).unwrap();
        }
        output::write_text(&run.join("state/step-000001.safetensors"), "").unwrap();
        output::write_text(&run.join("state/diary/monday.txt"), "precious").unwrap();
        let error = RunFolder::replace(&run).unwrap_err().to_string();
        assert!(error.contains("state/diary/monday.txt"), "{error}");
        fs::remove_file(run.join("state/diary/monday.txt")).unwrap();
        RunFolder::replace(&run).unwrap();
        assert!(!run.join("state").exists());
    }
}
