//! `catelier train`: pictures in, adapter out.

use std::path::Path;
use std::time::Instant;

use catelier_adapters::file::Format;
use catelier_adapters::{Adapter, AdapterSet};
use catelier_pipelines::base::BaseModel;
use catelier_pipelines::data::{
    Crop, DataNotice, Mirror, PictureOptions, Resolution, TrainingPicture, TrainingPictures,
};
use catelier_pipelines::picture_file;
use catelier_pipelines::train::{
    Control, EncodedDataset, Ending, HeldOutPrompts, LossKind, StepReport, TrainConfig, TrainError, TrainObserver,
    Trainer,
};
use catelier_prompts::captions::CaptionOptions;
use catelier_prompts::{PromptSet, Trigger, template};

use crate::base_source::{self, BaseSource};
use crate::cli::{SamplingArgs, TrainArgs};
use crate::easel::Easel;
use crate::failure::{Blame, Failure, Outcome};
use crate::planning;
use crate::progress::Progress;
use crate::run_folder::RunFolder;
use crate::settings::{BaseDefaults, TrainSettings, stated};
use crate::{signals, terminal};

/// Where a run begins.
pub(super) enum Start<'a> {
    /// A fresh adapter, which changes nothing yet.
    Fresh,
    /// The newest state of the run's folder.
    Resume,
    /// Another adapter, as in a federation's next round.
    From(&'a Adapter),
}

/// A run that came to its end, or that somebody stopped.
pub(super) struct Trained {
    pub(super) adapter: Adapter,
    pub(super) settings: TrainSettings,
    pub(super) reports: Vec<StepReport>,
    pub(super) ending: Ending,
}

pub(super) fn run(args: TrainArgs) -> Outcome<()> {
    let out = args.out.clone();
    let (folder, settings, start) = prepare(args)?;
    let source = BaseSource::parse(settings.base.as_deref().unwrap_or("embedded"))?;
    let files = source.files()?;
    let config = base_source::config(&files)?;
    let settings = settings.complete(&planning::defaults(&config, source.is_embedded()));
    let device = settings.device()?;
    let plan = planning::plan(&config, &settings, &device)?;
    plan.tell();
    let mut base = source.load_from(config, &files, settings.weights_dtype()?, &device)?;
    base.unet.recompute(plan.recompute);
    let trained = train(&base, settings, &folder, start)?;
    if let Ending::Stopped { step, reason } = trained.ending {
        terminal::say(&format!("stopped after step {step} ({reason}); everything is saved"));
        terminal::say(&format!("go on with: catelier train --resume --out {}", out.display()));
    }
    Ok(())
}

/// The run's folder and what is asked of it: flags over run file, or the saved settings of a run to resume.
fn prepare(args: TrainArgs) -> Outcome<(RunFolder, TrainSettings, Start<'static>)> {
    let asked = args.settings.resolve()?;
    if !args.resume {
        stated("images", asked.images.as_ref())?;
        stated("trigger", asked.trigger.as_ref())?;
        return Ok((RunFolder::create(&args.out)?, asked, Start::Fresh));
    }
    let folder = RunFolder::open(&args.out)?;
    let saved = TrainSettings::read(&folder.settings())?;
    Ok((folder, saved.resumed_with(asked)?, Start::Resume))
}

/// What `base` is trained with unless told otherwise.
pub(super) fn defaults(base: &BaseModel, embedded: bool) -> BaseDefaults {
    BaseDefaults { embedded, resolution: base.resolution }
}

/// Trains with complete `settings` and leaves everything in `folder`.
pub(super) fn train(
    base: &BaseModel,
    settings: TrainSettings,
    folder: &RunFolder,
    start: Start<'_>,
) -> Outcome<Trained> {
    let config = settings.train_config()?;
    let trigger = Trigger::new(&stated("trigger", settings.trigger.clone())?).request("cannot use the trigger")?;
    let pictures = pictures(&settings, &trigger)?;
    let dataset = dataset(base, &pictures, &settings, &config)?;
    let mut trainer = match start {
        Start::From(adapter) => Trainer::from_adapter(base, config, &dataset, folder.states(), adapter),
        Start::Fresh | Start::Resume => Trainer::new(base, config, &dataset, folder.states()),
    }
    .request("cannot train")?;
    folder.save_settings(&settings)?;
    if matches!(start, Start::Resume) {
        let step = trainer.resume().request("cannot resume")?;
        folder.keep_metrics_until(step)?;
        terminal::say(&format!("resumed after step {step}"));
    }
    if stated("drift_every", settings.drift_every)? > 0 {
        trainer.measure_drift(&held_out(base, &settings)?).run("cannot measure the drift")?;
    }
    signals::listen();
    let mut watch = Watch::new(base, folder, &settings, &trigger, trainer.step())?;
    let ending = trainer.run(&mut watch).run("training stopped")?;
    trainer.save().run("cannot save the state")?;
    let adapter = trainer.adapter().run("cannot take the adapter")?;
    let format = settings.format.map_or(Format::Kohya, Format::from);
    let path = folder.save_adapter(&adapter, format, base, &settings)?;
    terminal::say(&format!("adapter: {}", path.display()));
    Ok(Trained { adapter, settings, reports: watch.reports, ending })
}

/// The pictures to learn from; what is worth knowing about them is said.
pub(super) fn pictures(settings: &TrainSettings, trigger: &Trigger) -> Outcome<TrainingPictures> {
    let folder = stated("images", settings.images.clone())?;
    let side = stated("resolution", settings.resolution)?;
    let options = PictureOptions {
        captions: CaptionOptions { shared_caption: settings.caption.clone() },
        resolution: Resolution::square(side as u32).request("cannot use `resolution`")?,
        crop: crop(&stated("crop", settings.crop.clone())?)?,
        mirror: if settings.flip == Some(true) { Mirror::Also } else { Mirror::Never },
        seed: stated("seed", settings.seed)?,
    };
    let pictures = TrainingPictures::load(&folder, trigger, &options).request("cannot train on these pictures")?;
    for notice in &pictures.notices {
        match notice {
            DataNotice::TriggerInserted { trigger, names } => {
                let (some, all) = (names.len(), pictures.pictures.len());
                terminal::say(&format!("put the trigger `{trigger}` in front of {some} of {all} captions"));
            }
            _ => terminal::warn(&notice.to_string()),
        }
    }
    terminal::say(&format!("{} pictures from {}", pictures.pictures.len(), folder.display()));
    Ok(pictures)
}

fn crop(name: &str) -> Outcome<Crop> {
    match name {
        "center" | "centre" => Ok(Crop::Centre),
        "random" => Ok(Crop::Random),
        _ => Err(Failure::request(format!("unknown crop `{name}`"), "use `center` or `random`")),
    }
}

fn dataset(
    base: &BaseModel,
    pictures: &TrainingPictures,
    settings: &TrainSettings,
    config: &TrainConfig,
) -> Outcome<EncodedDataset> {
    warn_of_cut_captions(base, pictures);
    let mut progress = Progress::new("encoding", pictures.frame_count());
    let class = settings.class.as_deref();
    let mut tell = |done, _| progress.reach(done, String::new());
    let dataset = EncodedDataset::encode(base, pictures, config.cat_condition, class, &mut tell);
    let dataset = dataset.request("cannot encode the pictures")?;
    drop(progress);
    let dataset = match config.loss {
        LossKind::Dreambooth => {
            let class = stated("class", settings.class.clone())?;
            let drawn = class_pictures(base, &class, settings)?;
            dataset.with_class_images(base, &class, &drawn).run("cannot encode the class pictures")?
        }
        _ => dataset,
    };
    dataset.with_keys(base, config).request("cannot train")
}

fn warn_of_cut_captions(base: &BaseModel, pictures: &TrainingPictures) {
    let dropped = |picture: &TrainingPicture| base.text.tokens(&picture.captions.with_trigger).ok()?.dropped;
    let cut: Vec<_> = pictures.pictures.iter().filter_map(|picture| Some((&picture.name, dropped(picture)?))).collect();
    if let Some((name, dropped)) = cut.first() {
        terminal::warn(&format!(
            "{} of {} captions are too long for this base; of `{name}`, `{dropped}` is dropped",
            cut.len(),
            pictures.pictures.len(),
        ));
    }
}

/// Pictures of the class as the base draws them.
fn class_pictures(base: &BaseModel, class: &str, settings: &TrainSettings) -> Outcome<Vec<image::RgbImage>> {
    let count = stated("class_pictures", settings.class_pictures)?;
    let sampling = preview_sampling(settings)?;
    let mut easel = Easel::new(base, settings.on_embedded_base(), &sampling)?;
    let seeds: Vec<u64> = (0..count as u64).map(|number| sampling.seed + number).collect();
    easel.draw("class pictures", &vec![class.to_string(); count], &seeds, &AdapterSet::base())
}

/// The prompts whose predictions should not drift, encoded.
fn held_out(base: &BaseModel, settings: &TrainSettings) -> Outcome<HeldOutPrompts> {
    let set = PromptSet::builtin(base_source::prompt_set_name(settings.on_embedded_base()))
        .run("cannot read the held-out prompts")?;
    let rendered = set.render(Default::default()).run("cannot use the held-out prompts")?;
    let prompts: Vec<&str> = rendered.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
    let spread: Vec<&str> = prompts.iter().copied().step_by(prompts.len().div_ceil(DRIFT_PROMPTS)).collect();
    HeldOutPrompts::encode(base, &spread).run("cannot encode the held-out prompts")
}

/// Held-out prompts that the drift is measured on.
const DRIFT_PROMPTS: usize = 8;

/// The sampling of previews and class pictures.
fn preview_sampling(settings: &TrainSettings) -> Outcome<SamplingArgs> {
    let side = stated("resolution", settings.resolution)?;
    let seed = stated("seed", settings.seed)?;
    Ok(SamplingArgs { size: Some(format!("{side}x{side}")), ..SamplingArgs::default_with_seed(seed) })
}

/// Watches a run: progress, metrics, previews, and when to save or stop.
struct Watch<'a> {
    folder: &'a RunFolder,
    progress: Progress,
    previews: Option<Previews<'a>>,
    save_every: usize,
    drift_every: usize,
    steps: usize,
    started: Instant,
    reports: Vec<StepReport>,
}

/// Draws the same prompt with the same seed again and again.
struct Previews<'a> {
    easel: Easel<'a>,
    prompt: String,
    seed: u64,
    every: usize,
}

impl<'a> Watch<'a> {
    fn new(
        base: &'a BaseModel,
        folder: &'a RunFolder,
        settings: &TrainSettings,
        trigger: &Trigger,
        step: usize,
    ) -> Outcome<Self> {
        let steps = stated("steps", settings.steps)?;
        Ok(Self {
            folder,
            progress: Progress::new("training", steps).starting_at(step),
            previews: Previews::new(base, settings, trigger)?,
            save_every: stated("save_every", settings.save_every)?,
            drift_every: stated("drift_every", settings.drift_every)?,
            steps,
            started: Instant::now(),
            reports: Vec::new(),
        })
    }
}

impl TrainObserver for Watch<'_> {
    fn on_step(&mut self, report: &StepReport) -> Result<Control, TrainError> {
        let seconds = self.started.elapsed().as_secs_f64();
        self.folder.add_metrics(report, seconds).map_err(TrainError::observer)?;
        let cat = report.cat.map_or_else(String::new, |cat| format!("  cat {cat:.5}"));
        self.progress.reach(report.step, format!("loss {:.4}{cat}", report.denoising));
        self.reports.push(report.clone());
        Ok(if due(report.step, self.save_every) { Control::Save.or(asked()) } else { asked() })
    }

    fn wants_drift(&self, step: usize) -> bool {
        due(step, self.drift_every) || (self.drift_every > 0 && step == self.steps)
    }

    fn wants_adapter(&self, step: usize) -> bool {
        self.previews.as_ref().is_some_and(|previews| due(step, previews.every))
    }

    fn on_adapter(&mut self, step: usize, adapter: &Adapter) -> Result<Control, TrainError> {
        if let Some(previews) = &mut self.previews {
            let path = self.folder.preview(step);
            let drawn = previews.draw(&AdapterSet::single(adapter, 1.0), &path);
            drawn.map_err(|failure| TrainError::observer(failure.into_source()))?;
        }
        Ok(asked())
    }
}

/// What the person at the keyboard asks for.
fn asked() -> Control {
    if signals::stop_requested() { Control::Stop("interrupted".into()) } else { Control::Continue }
}

fn due(step: usize, every: usize) -> bool {
    every > 0 && step.is_multiple_of(every)
}

impl<'a> Previews<'a> {
    fn new(base: &'a BaseModel, settings: &TrainSettings, trigger: &Trigger) -> Outcome<Option<Self>> {
        let every = stated("preview_every", settings.preview_every)?;
        if every == 0 {
            return Ok(None);
        }
        let sampling = preview_sampling(settings)?;
        let given = settings.preview_prompt.clone().unwrap_or_else(|| "{trigger}".to_string());
        let values = template::Values { trigger: Some(trigger.word()), class: settings.class.as_deref() };
        let prompt = template::render(&given, values).request("cannot use `preview_prompt`")?;
        Ok(Some(Self {
            easel: Easel::new(base, settings.on_embedded_base(), &sampling)?,
            prompt,
            seed: sampling.seed,
            every,
        }))
    }

    fn draw(&mut self, adapters: &AdapterSet, path: &Path) -> Outcome<()> {
        let pictures = self.easel.draw("preview", std::slice::from_ref(&self.prompt), &[self.seed], adapters)?;
        let parameters = self.easel.parameters(&self.prompt, self.seed, &[]);
        let cannot_save = || format!("cannot save the preview `{}`", path.display());
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).run(cannot_save())?;
        picture_file::write_png(path, &pictures[0], Some(&parameters)).run(cannot_save())
    }
}
