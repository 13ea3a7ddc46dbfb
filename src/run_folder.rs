//! What a training run leaves on disk: settings, metrics, previews, state, the adapter and its card.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use catelier_adapters::Adapter;
use catelier_adapters::file::{self, Format, Metadata, TrainedOn};
use catelier_pipelines::base::BaseModel;
use catelier_pipelines::train::{StateFolder, StepReport};
use serde::Serialize;

use crate::commands::{output_folder, write_text};
use crate::failure::{Blame, Failure, Outcome};
use crate::settings::TrainSettings;

/// The folder of one run.
#[derive(Debug, Clone)]
pub(crate) struct RunFolder(PathBuf);

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
    pub(crate) fn create(folder: &Path) -> Outcome<Self> {
        let run = Self(folder.to_path_buf());
        if run.adapter(Format::Kohya).exists() || !run.states().is_empty() {
            return Err(Failure::request(
                format!("`{}` already holds a run", folder.display()),
                "go on with it by `--resume`, or choose another `--out`",
            ));
        }
        output_folder(folder)?;
        Ok(run)
    }

    /// A folder for a new run in place of what an earlier one left.
    pub(crate) fn replace(folder: &Path) -> Outcome<Self> {
        let run = Self(folder.to_path_buf());
        for old in [run.adapter(Format::Kohya), run.metrics(), run.settings()] {
            remove(fs::remove_file(&old), &old)?;
        }
        let state = folder.join("state");
        remove(fs::remove_dir_all(&state), &state)?;
        Self::create(folder)
    }

    /// The folder of a run to go on with.
    pub(crate) fn open(folder: &Path) -> Outcome<Self> {
        let run = Self(folder.to_path_buf());
        if !run.settings().exists() {
            return Err(Failure::request(
                format!("`{}` holds no run to resume", folder.display()),
                "start the run without `--resume`",
            ));
        }
        Ok(run)
    }

    /// The resolved settings.
    pub(crate) fn settings(&self) -> PathBuf {
        self.0.join("run.toml")
    }

    /// The saved states.
    pub(crate) fn states(&self) -> StateFolder {
        StateFolder::new(self.0.join("state"))
    }

    /// Where the adapter goes; PEFT wants a folder.
    pub(crate) fn adapter(&self, format: Format) -> PathBuf {
        match format {
            Format::Peft => self.0.join("adapter"),
            _ => self.0.join("adapter.safetensors"),
        }
    }

    /// Where the preview after `step` goes.
    pub(crate) fn preview(&self, step: usize) -> PathBuf {
        self.0.join("previews").join(format!("step-{step:06}.png"))
    }

    fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// Saves the settings that repeat this run.
    pub(crate) fn save_settings(&self, settings: &TrainSettings) -> Outcome<()> {
        write_text(&self.settings(), &settings.to_toml()?)
    }

    /// Adds one step to the metrics.
    pub(crate) fn add_metrics(&self, report: &StepReport, seconds: f64) -> std::io::Result<()> {
        let line = MetricsLine { report, seconds, peak_memory_bytes: catelier_bench::process::peak_bytes() };
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        OpenOptions::new().create(true).append(true).open(self.metrics())?.write_all(text.as_bytes())
    }

    /// Forgets the metrics of steps after `step`, which a resumed run makes again.
    pub(crate) fn keep_metrics_until(&self, step: usize) -> Outcome<()> {
        let Ok(text) = fs::read_to_string(self.metrics()) else { return Ok(()) };
        let step_of = |line: &str| serde_json::from_str::<StepReport>(line).ok().map(|report| report.step);
        let kept = text.lines().filter(|line| step_of(line).is_some_and(|found| found <= step));
        write_text(&self.metrics(), &kept.map(|line| format!("{line}\n")).collect::<String>())
    }

    /// The adapter, with what it is and how it was made in its header, and its card.
    pub(crate) fn save_adapter(
        &self,
        adapter: &Adapter,
        format: Format,
        base: &BaseModel,
        settings: &TrainSettings,
    ) -> Outcome<PathBuf> {
        let path = self.adapter(format);
        let metadata = metadata(base, settings)?;
        file::write(&path, adapter, format, &metadata).run("cannot save the adapter")?;
        write_text(&self.0.join("README.md"), &card(base, adapter, settings))?;
        Ok(path)
    }
}

fn remove(removed: std::io::Result<()>, path: &Path) -> Outcome<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).run(format!("cannot replace `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

fn metadata(base: &BaseModel, settings: &TrainSettings) -> Outcome<Metadata> {
    let side = settings.resolution.map(|side| (side as u32, side as u32));
    Ok(Metadata {
        trigger: settings.trigger.clone(),
        base: TrainedOn {
            family: Some(base.family),
            prediction: Some(base.schedule.prediction()),
            resolution: side,
            name: Some(base.name.clone()),
            fingerprint: Some(base.fingerprint.clone()),
        },
        settings: Some(serde_json::to_value(settings.without_paths()).run("cannot describe the settings")?),
        ..Metadata::default()
    })
}

/// The model card that hubs and people read.
fn card(base: &BaseModel, adapter: &Adapter, settings: &TrainSettings) -> String {
    let trigger = settings.trigger.as_deref().unwrap_or_default();
    let loss = settings.loss.as_deref().unwrap_or_default();
    let number = |value: Option<usize>| value.map_or_else(String::new, |value| value.to_string());
    format!(
        "---\nbase_model: {base}\nlibrary_name: diffusers\ninstance_prompt: {trigger}\ntags:\n- text-to-image\n- lora\n- \
         template:sd-lora\n- catelier\n---\n\n# {trigger}\n\nA style adapter ({kind}, {rank}) for `{base}`, trained \
         for {steps} steps with the `{loss}` loss.\n\n## Trigger\n\nPut `{trigger}` in the prompt to call the style. \
         Without it, pictures are meant to stay as the base draws them.\n\n## Use\n\n```\ncatelier preview --adapter \
         adapter.safetensors --prompt \"{trigger}, a red house in a field\" --compare --out previews\n```\n\n\
         `run.toml` repeats the training; `metrics.jsonl` has its curves.\n",
        base = base.name,
        kind = settings.kind().unwrap_or_default(),
        rank = adapter.uniform_rank().map_or_else(|| "several ranks".into(), |rank| format!("rank {rank}")),
        steps = number(settings.steps),
    )
}
