//! Watches a run: progress, metrics, previews, and when to save or stop.

use std::path::Path;
use std::time::Instant;

use catelier_adapters::{Adapter, AdapterSet};
use catelier_pipelines::generation::image_file;
use catelier_pipelines::training::{Control, StepReport, TrainError, TrainObserver};
use catelier_prompts::template;

use super::data::sampling_of;
use crate::base::Base;
use crate::error::{Context, Error, Result};
use crate::event::{ArtefactKind, Event, Stage};
use crate::generator::{ImageGenerator, Images};
use crate::output;
use crate::run_folder::RunFolder;
use crate::session::Session;
use crate::settings::ResolvedTrain;

/// Watches one run.
pub(super) struct Watch<'a, 's> {
    session: &'a Session<'s>,
    folder: &'a RunFolder,
    run: String,
    previews: Option<Previews<'a>>,
    save_every: usize,
    drift_every: usize,
    steps: usize,
    started: Instant,
    pub(super) reports: Vec<StepReport>,
}

/// Generates an image of the same prompt and seed again and again.
struct Previews<'a> {
    generator: ImageGenerator<'a>,
    prompt: String,
    seed: u64,
    every: usize,
}

impl<'a, 's> Watch<'a, 's> {
    /// Watches the run `run` from `step` on.
    pub(super) fn new(
        base: &'a Base,
        folder: &'a RunFolder,
        settings: &ResolvedTrain,
        step: usize,
        run: String,
        session: &'a Session<'s>,
    ) -> Result<Self> {
        // Whether the run goes on is asked after each step.
        let _ = session.progress(Stage::Train, step, settings.steps, "");
        Ok(Self {
            session,
            folder,
            run,
            previews: Previews::new(base, settings)?,
            save_every: settings.save_every,
            drift_every: settings.drift_every,
            steps: settings.steps,
            started: Instant::now(),
            reports: Vec::new(),
        })
    }
}

impl TrainObserver for Watch<'_, '_> {
    fn on_step(&mut self, report: &StepReport) -> Result<Control, TrainError> {
        let (seconds, peak_memory) = (self.started.elapsed().as_secs_f64(), self.session.peak_memory());
        self.folder.add_metrics(&self.run, report, seconds, peak_memory).map_err(TrainError::observer)?;
        self.session.report(Event::Step(report.clone()));
        let cat = report.cat.map_or_else(String::new, |cat| format!("  cat {cat:.5}"));
        let note = format!("loss {:.4}{cat}", report.denoising);
        let _ = self.session.progress(Stage::Train, report.step, report.steps, note);
        self.reports.push(report.clone());
        let asked = self.asked();
        let control = if due(report.step, self.save_every) { Control::Save.or(asked) } else { asked };
        if control != Control::Continue || report.step == self.steps {
            self.folder.sync_metrics().map_err(TrainError::observer)?;
        }
        Ok(control)
    }

    fn is_stopped(&self) -> bool {
        self.session.is_cancelled()
    }

    fn wants_drift(&self, step: usize) -> bool {
        due(step, self.drift_every) || (self.drift_every > 0 && step == self.steps)
    }

    fn wants_adapter(&self, step: usize) -> bool {
        !self.is_stopped() && self.previews.as_ref().is_some_and(|previews| due(step, previews.every))
    }

    fn on_adapter(&mut self, step: usize, adapter: &Adapter) -> Result<Control, TrainError> {
        if let Some(previews) = &mut self.previews {
            let adapters = AdapterSet::single(adapter, 1.0);
            match previews.generate(&adapters, &self.folder.preview(step), self.session) {
                // The run stops after this step, and must be saved first; when it goes on, it makes up for the preview.
                Err(Error::Cancelled) => {}
                result => result.map_err(TrainError::observer)?,
            }
        }
        Ok(self.asked())
    }
}

impl Watch<'_, '_> {
    /// Generates the preview that the run was stopped in, before it goes on from `step`.
    pub(super) fn make_up(&mut self, step: usize, adapter: &Adapter) -> Result<()> {
        if step > 0 && self.wants_adapter(step) && !self.folder.preview(step).exists() {
            self.on_adapter(step, adapter).failed("training stopped")?;
        }
        Ok(())
    }

    fn asked(&self) -> Control {
        if self.session.is_cancelled() { Control::Stop("interrupted".into()) } else { Control::Continue }
    }
}

fn due(step: usize, every: usize) -> bool {
    every > 0 && step.is_multiple_of(every)
}

impl<'a> Previews<'a> {
    fn new(base: &'a Base, settings: &ResolvedTrain) -> Result<Option<Self>> {
        if settings.preview_every == 0 {
            return Ok(None);
        }
        let sampling = sampling_of(base, settings);
        let values = template::Values { trigger: Some(&settings.trigger), class: settings.class.as_deref() };
        let prompt = template::render(&settings.preview_prompt, values).user_error("cannot use `preview_prompt`")?;
        let (generator, seed) = (ImageGenerator::new(base, &sampling), sampling.seed);
        Ok(Some(Self { generator, prompt, seed, every: settings.preview_every }))
    }

    fn generate(&mut self, adapters: &AdapterSet, path: &Path, session: &Session<'_>) -> Result<()> {
        let images = Images { prompts: std::slice::from_ref(&self.prompt), seeds: &[self.seed] };
        let images = self.generator.generate(Stage::TrainingPreview, images, adapters, session)?;
        let parameters = self.generator.parameters(&self.prompt, self.seed, &[]);
        output::make_folder(path.parent().unwrap_or(Path::new(".")))?;
        image_file::write_png(path, &images[0], Some(&parameters)).failed("cannot save a preview")?;
        session.written(ArtefactKind::Image, path);
        Ok(())
    }
}
