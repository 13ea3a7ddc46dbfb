//! The whole story on the embedded base, ending in one page.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device};
use catelier_adapters::AdapterSet;
use catelier_evaluation::report::{
    AdaptedImages, Command, DemoArtist, DemoPage, DemoPrompt, EMBEDDED_BASE_NOTICE, Run as PageRun, Setting,
    TrainingCurves,
};
use catelier_evaluation::{Reference, Scores};
use catelier_gallery::Artist;
use catelier_gallery::export::Source;
use catelier_pipelines::training::{Ending, LossKind, StepReport};
use catelier_prompts::{PromptSet, Trigger};

use crate::base::{Base, BaseSource};
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::generator::ImageGenerator;
use crate::output::{self, OutputFolder};
use crate::run_folder::RunFolder;
use crate::scoring::{AdapterImages, BaseImages, EvaluationPrompts, Scorer, Towers};
use crate::session::Session;
use crate::settings::defaults::{DEMO_ARTISTS, DEMO_PROMPTS, DEMO_TRIGGER, PLAY_IMAGES, PLAY_SEED};
use crate::settings::{ResolvedTrain, SamplingSettings, TrainSettings};
use crate::train::{Run, Trained, TrainingData};
use crate::{drawn, images};

/// The command that makes folders of demos.
const COMMAND: &str = "demo";

const CAT_RUN: &str = "cat";
const LORA_RUN: &str = "lora";
const REPORT: &str = "report.html";

/// Prompts that the page shows in full.
const PROMPTS_SHOWN: usize = 6;

/// A demo as it is asked for.
#[derive(Debug, Clone)]
pub struct DemoRequest {
    /// Where a folder for each artist and `report.html` go, in place of those of an earlier demo.
    pub out: PathBuf,
    /// Write beside files in `out` that no demo made; files in the way are refused all the same.
    pub force: bool,
    /// The artists to learn from, one after the other.
    pub artists: Vec<String>,
    /// Optimizer steps of each training; `None` takes the default of the embedded base.
    pub steps: Option<usize>,
    /// Evaluation prompts of each kind.
    pub prompts: usize,
    /// Denoising steps of each generated image; `None` takes the default.
    pub sampling_steps: Option<usize>,
    /// Seed of the drawn images, the trainings and the generated images.
    pub seed: u64,
}

impl Default for DemoRequest {
    /// The default artists and sizes, in `catelier-demo`.
    fn default() -> Self {
        Self {
            out: PathBuf::from("catelier-demo"),
            force: false,
            artists: DEMO_ARTISTS.map(str::to_owned).to_vec(),
            steps: None,
            prompts: DEMO_PROMPTS,
            sampling_steps: None,
            seed: PLAY_SEED,
        }
    }
}

/// A demo that is done.
#[derive(Debug, Clone)]
pub struct Demo {
    /// Scores for each artist.
    pub artists: Vec<DemoScores>,
    /// The page for a browser.
    pub report: PathBuf,
}

/// The scores of one artist's two adapters.
#[derive(Debug, Clone)]
pub struct DemoScores {
    /// The artist's name.
    pub artist: &'static str,
    /// Of the adapter trained with CAT.
    pub cat: Scores,
    /// Of the plain LoRA.
    pub lora: Scores,
}

/// Draws artists' images, trains on those of each artist with CAT and without, scores both and writes a page.
///
/// # Errors
/// [`Error::User`] for an unknown artist, or a folder that holds other things; [`Error::Failed`] when training or the disk
/// fails; [`Error::Cancelled`].
pub fn demo(request: &DemoRequest, session: &Session<'_>) -> Result<Demo> {
    let artists = request.artists()?;
    output::check_utf8(&request.out, "run.toml")?;
    let out = OutputFolder::claim(&request.out, COMMAND, request.force, session)?;
    out.refuse_unknown(&[REPORT])?;
    for artist in &artists {
        let parts = [drawn::IMAGES, CAT_RUN, LORA_RUN].map(|part| format!("{}/{part}", artist.name));
        out.refuse_unknown(&parts.each_ref().map(String::as_str))?;
    }
    let base = BaseSource::Embedded.load(DType::F32, &Device::Cpu, session)?;
    let mut easel = Easel::new(request, &out, &base, session)?;
    let learned = artists.into_iter().map(|artist| easel.learn(artist)).collect::<Result<Vec<_>>>()?;

    let report = request.out.join(REPORT);
    output::write_text(&report, &page(&easel, &learned)?)?;
    session.written(ArtefactKind::Report, &report);
    out.finish()?;
    let scores = |one: Learned| DemoScores { artist: one.artist.name, cat: one.cat.scores, lora: one.lora.scores };
    Ok(Demo { artists: learned.into_iter().map(scores).collect(), report })
}

impl DemoRequest {
    fn artists(&self) -> Result<Vec<&'static Artist>> {
        let mut names = BTreeSet::new();
        if let Some(twice) = self.artists.iter().find(|name| !names.insert(*name)) {
            return Err(Error::user(format!("the artist `{twice}` is named twice"), "name each artist once"));
        }
        self.artists.iter().map(|name| drawn::artist(name)).collect()
    }

    fn settings(&self, loss: LossKind, images: &Path, base: &Base) -> Result<ResolvedTrain> {
        let settings = TrainSettings {
            images: Some(images.to_path_buf()),
            trigger: Some(DEMO_TRIGGER.to_string()),
            loss: Some(loss),
            steps: self.steps,
            seed: Some(self.seed),
            ..TrainSettings::default()
        };
        settings.resolve(&base.defaults())
    }
}

/// What the trainings of a demo share.
struct Easel<'a, 's> {
    request: &'a DemoRequest,
    out: &'a OutputFolder,
    base: &'a Base,
    towers: Towers,
    prompts: EvaluationPrompts,
    generator: ImageGenerator<'a>,
    base_images: BaseImages,
    session: &'a Session<'s>,
}

/// An artist, and what became of the two ways to learn from the artist's images.
struct Learned {
    artist: &'static Artist,
    references: Vec<Reference>,
    cat: Contestant,
    lora: Contestant,
}

/// One way of training, and its results.
struct Contestant {
    trained: Trained,
    images: AdapterImages,
    scores: Scores,
    seconds: f64,
}

impl<'a, 's> Easel<'a, 's> {
    fn new(request: &'a DemoRequest, out: &'a OutputFolder, base: &'a Base, session: &'a Session<'s>) -> Result<Self> {
        let set = PromptSet::builtin(base.prompt_set()).failed("cannot read the embedded prompts")?;
        let prompts = EvaluationPrompts::new(&set, request.prompts, 1, request.seed)?;
        let sampling = SamplingSettings { steps: request.sampling_steps, ..SamplingSettings::default() };
        let mut generator = ImageGenerator::new(base, &sampling.resolve(&base.defaults()));
        let base_images = prompts.generate_base(&mut generator, session)?;
        Ok(Self { request, out, base, towers: Towers::embedded()?, prompts, generator, base_images, session })
    }

    /// Draws the artist's images, trains on them with CAT and without, and scores both.
    fn learn(&mut self, artist: &'static Artist) -> Result<Learned> {
        self.session.note(format!("{} draws {PLAY_IMAGES} images", artist.name));
        let part = Path::new(artist.name);
        let folder = drawn::draw(
            self.out,
            &part.join(drawn::IMAGES),
            Source::Artist(artist),
            PLAY_IMAGES,
            self.request.seed,
            self.session,
        )?;
        let references = images::read_references(Some(&folder))?;
        let others = drawn::others(artist);
        let settings = |loss| self.request.settings(loss, &folder, self.base);
        let data = TrainingData::load(self.base, &settings(LossKind::Cat)?, self.session)?;
        let (cat, lora) = (settings(LossKind::Cat)?, settings(LossKind::Lora)?);
        let mut compete = |settings, name: &str| -> Result<Contestant> {
            let run = RunFolder::replace(&self.out.path().join(part).join(name), self.session)?;
            let (trained, seconds) = self.train(settings, &data, &run)?;
            let images = self.generate(&trained)?;
            let generation = self.generator.generation(Some(name), Some(DEMO_TRIGGER));
            let (prompts, base, towers) = (&self.prompts, &self.base_images, &self.towers);
            let choices = prompts.choices(self.base, &references);
            let scorer = Scorer { prompts, base, references: &references, others: &others, choices, towers };
            let scores = scorer.score(&scorer.evaluation(&images, generation), self.session)?;
            Ok(Contestant { trained, images, scores, seconds })
        };
        let (cat, lora) = (compete(cat, CAT_RUN)?, compete(lora, LORA_RUN)?);
        Ok(Learned { artist, references, cat, lora })
    }

    /// A training to its end, and how long it took.
    fn train(&self, settings: ResolvedTrain, data: &TrainingData, folder: &RunFolder) -> Result<(Trained, f64)> {
        let started = Instant::now();
        let run = Run { base: self.base, data, folder, start: None, towards: None, resume: false };
        let trained = run.train(settings, self.session)?;
        if trained.ending != Ending::Finished {
            return Err(Error::Cancelled);
        }
        Ok((trained, started.elapsed().as_secs_f64()))
    }

    fn generate(&mut self, trained: &Trained) -> Result<AdapterImages> {
        let trigger = Trigger::new(DEMO_TRIGGER).failed("cannot use the trigger")?;
        let adapters = AdapterSet::single(&trained.adapter, 1.0);
        self.prompts.generate(&mut self.generator, &adapters, Some(&trigger), self.session)
    }
}

fn page(easel: &Easel<'_, '_>, learned: &[Learned]) -> Result<String> {
    let page = DemoPage {
        artists: learned.iter().map(|one| one.for_page(easel)).collect(),
        trigger: DEMO_TRIGGER,
        settings: learned.first().map_or_else(Vec::new, |one| facts(&one.cat.trained.settings)),
        commands: COMMANDS.to_vec(),
        training_note: "CAT runs the model twice more at every step.",
        notice: Some(EMBEDDED_BASE_NOTICE),
    };
    page.html().failed("cannot write the report")
}

impl Learned {
    fn for_page<'a>(&'a self, easel: &'a Easel<'_, '_>) -> DemoArtist<'a> {
        let prompts = easel.prompts.iter().enumerate().map(|(index, (prompt, seed))| DemoPrompt {
            prompt: &prompt.text,
            seed,
            base: &easel.base_images.0[index],
            adapted: [&self.cat, &self.lora].map(|contestant| contestant.images(index)).to_vec(),
        });
        let references = self.references.iter().map(|one| (one.caption.as_deref().unwrap_or_default(), &one.image));
        DemoArtist {
            name: self.artist.name,
            description: self.artist.description,
            images: references.collect(),
            prompts: spread(prompts.collect(), PROMPTS_SHOWN),
            run: self.cat.page_run("CAT", CAT),
            baseline: self.lora.page_run("plain LoRA", LORA),
            more: Vec::new(),
            trade_off: Vec::new(),
        }
    }
}

const COMMANDS: [Command<'static>; 3] = [
    Command {
        explanation: "Train on your own images",
        line: "catelier train --base stable-diffusion-v1-5/stable-diffusion-v1-5 --images my-art --trigger shs --out my-style",
    },
    Command {
        explanation: "Draw with it, beside the base",
        line: "catelier preview --base stable-diffusion-v1-5/stable-diffusion-v1-5 --adapter my-style/adapter.safetensors --prompt \"a house by the sea\" --compare --out previews",
    },
    Command {
        explanation: "Score it",
        line: "catelier evaluate --base stable-diffusion-v1-5/stable-diffusion-v1-5 --clip clip-vit-base-patch32 --adapter my-style/adapter.safetensors --references my-art --out scores",
    },
];

const CAT: &str = "CAT (Contrastive Adapter Training) also had to leave everything else alone: without the trigger, draw as if nothing had been learned.";
const LORA: &str = "Plain LoRA only learned to draw them.";

impl Contestant {
    fn page_run<'a>(&'a self, name: &'a str, method: &'a str) -> PageRun<'a> {
        PageRun { name, method, scores: &self.scores, curves: curves(&self.trained.reports), seconds: self.seconds }
    }

    /// The images of one prompt.
    fn images(&self, index: usize) -> AdaptedImages<'_> {
        let AdapterImages { without_trigger, with_trigger } = &self.images;
        AdaptedImages { without_trigger: &without_trigger[index], with_trigger: &with_trigger[index] }
    }
}

fn curves(reports: &[StepReport]) -> TrainingCurves {
    let of = |value: fn(&StepReport) -> Option<f64>| {
        reports.iter().filter_map(|report| Some((report.step as u64, value(report)?))).collect()
    };
    TrainingCurves {
        loss: of(|report| Some(report.denoising)),
        cat: of(|report| report.cat),
        drift: of(|report| report.drift),
        learning_rate: of(|report| Some(report.learning_rate)),
    }
}

fn facts(settings: &ResolvedTrain) -> Vec<Setting> {
    let facts = [
        ("Steps", settings.steps.to_string()),
        ("Images per step", settings.batch.to_string()),
        ("Learning rate", settings.learning_rate.to_string()),
        ("Rank", settings.rank.to_string()),
        ("Seed", settings.seed.to_string()),
    ];
    facts.into_iter().map(|(name, value)| Setting { name: name.to_string(), value }).collect()
}

/// At most `count` of `items`, evenly spread.
fn spread<T>(items: Vec<T>, count: usize) -> Vec<T> {
    let every = items.len().div_ceil(count.max(1)).max(1);
    items.into_iter().step_by(every).collect()
}
