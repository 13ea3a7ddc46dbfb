//! The whole story on the embedded base, ending in one page.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Device};
use catelier_adapters::AdapterSet;
use catelier_evaluation::Scores;
use catelier_evaluation::report::{
    AdaptedImages, Command, DemoPage, DemoPrompt, EMBEDDED_BASE_NOTICE, Run as PageRun, Setting, TrainingCurves,
};
use catelier_gallery::Artist;
use catelier_pipelines::training::{Ending, LossKind, StepReport};
use catelier_prompts::{PromptSet, Trigger};
use image::RgbImage;

use crate::base::{Base, BaseSource};
use crate::error::{Context, Error, Result};
use crate::event::ArtefactKind;
use crate::generator::ImageGenerator;
use crate::output::{self, OutputFolder};
use crate::run_folder::RunFolder;
use crate::scoring::{AdapterImages, EvaluationPrompts, Scorer};
use crate::session::Session;
use crate::settings::defaults::{DEMO_ARTIST, DEMO_GUIDANCE, DEMO_PROMPTS, DEMO_TRIGGER, PLAY_IMAGES, PLAY_SEED};
use crate::settings::{ResolvedTrain, SamplingSettings, TrainSettings};
use crate::train::{Run, Start, Trained, TrainingData};
use crate::{drawn, embedded, images};

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
    /// Where the images and `report.html` go, in place of those of an earlier demo.
    pub out: PathBuf,
    /// Write beside files in `out` that no demo made; files in the way are refused all the same.
    pub force: bool,
    /// The artist to learn from.
    pub artist: String,
    /// Optimizer steps of each of the two trainings; `None` takes the default of the embedded base.
    pub steps: Option<usize>,
    /// Evaluation prompts of each kind.
    pub prompts: usize,
    /// Denoising steps of each generated image; `None` takes the default.
    pub sampling_steps: Option<usize>,
    /// Seed of the drawn images, the trainings and the generated images.
    pub seed: u64,
}

impl Default for DemoRequest {
    /// The default artist and sizes, in `catelier-demo`.
    fn default() -> Self {
        Self {
            out: PathBuf::from("catelier-demo"),
            force: false,
            artist: DEMO_ARTIST.into(),
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
    /// Scores of the adapter trained with CAT.
    pub cat: Scores,
    /// Scores of the plain LoRA.
    pub lora: Scores,
    /// The page for a browser.
    pub report: PathBuf,
}

/// One way of training, and its results.
struct Contestant {
    trained: Trained,
    images: AdapterImages,
    scores: Scores,
    seconds: f64,
}

/// Draws an artist's images, trains on them with CAT and without, scores both and writes a page.
///
/// # Errors
/// [`Error::User`] for an unknown artist, or a folder that holds other things; [`Error::Failed`] when training or the disk
/// fails; [`Error::Cancelled`].
pub fn demo(request: &DemoRequest, session: &Session<'_>) -> Result<Demo> {
    let artist = drawn::artist(&request.artist)?;
    output::check_utf8(&request.out, "run.toml")?;
    let out = OutputFolder::claim(&request.out, COMMAND, request.force, session)?;
    out.refuse_unknown(&[drawn::IMAGES, CAT_RUN, LORA_RUN, REPORT])?;
    session.note(format!("{} draws {PLAY_IMAGES} images", artist.name));
    let folder = drawn::draw(&out, Path::new(drawn::IMAGES), artist, PLAY_IMAGES, request.seed, session)?;

    let base = BaseSource::Embedded.load(DType::F32, &Device::Cpu, session)?;
    let clip = embedded::clip()?;
    let set = PromptSet::builtin(base.prompt_set()).failed("cannot read the embedded prompts")?;
    let prompts = EvaluationPrompts::new(&set, request.prompts, 1, request.seed)?;
    let sampling = SamplingSettings {
        guidance: Some(DEMO_GUIDANCE),
        steps: request.sampling_steps,
        ..SamplingSettings::default()
    };
    let mut generator = ImageGenerator::new(&base, &sampling.resolve(&base.defaults()));
    let base_images = prompts.generate_base(&mut generator, session)?;
    let references = images::read_references(Some(&folder))?;
    let scorer = Scorer { prompts: &prompts, base: &base_images, references: &references, clip: &clip };

    let settings = |loss| request.settings(loss, &folder, &base);
    let data = TrainingData::load(&base, &settings(LossKind::Cat)?, session)?;
    let mut compete = |loss: LossKind, name: &str| -> Result<Contestant> {
        let (started, folder) = (Instant::now(), RunFolder::replace(&request.out.join(name), session)?);
        let run = Run { base: &base, data: &data, folder: &folder, start: Start::Fresh };
        let trained = run.train(settings(loss)?, session)?;
        if trained.ending != Ending::Finished {
            return Err(Error::Cancelled);
        }
        let seconds = started.elapsed().as_secs_f64();
        let trigger = Trigger::new(DEMO_TRIGGER).failed("cannot use the trigger")?;
        let adapters = AdapterSet::single(&trained.adapter, 1.0);
        let images = prompts.generate(&mut generator, &adapters, Some(&trigger), session)?;
        let evaluation = scorer.evaluation(&images, generator.generation(Some(name), Some(DEMO_TRIGGER)));
        let scores = scorer.score(&evaluation, session)?;
        Ok(Contestant { trained, images, scores, seconds })
    };
    let (cat, lora) = (compete(LossKind::Cat, CAT_RUN)?, compete(LossKind::Lora, LORA_RUN)?);

    let report = request.out.join(REPORT);
    output::write_text(&report, &page(artist, &scorer, [&cat, &lora])?)?;
    session.written(ArtefactKind::Report, &report);
    out.finish()?;
    Ok(Demo { cat: cat.scores, lora: lora.scores, report })
}

impl DemoRequest {
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

fn page(artist: &Artist, scorer: &Scorer<'_>, [cat, lora]: [&Contestant; 2]) -> Result<String> {
    let names: Vec<String> = (1..=scorer.references.len()).map(|number| format!("image {number}")).collect();
    let prompts = scorer.prompts.iter().enumerate().map(|(index, (prompt, seed))| DemoPrompt {
        prompt: &prompt.text,
        seed,
        base: &scorer.base.0[index],
        adapted: [cat, lora].map(|contestant| contestant.images(index)).to_vec(),
    });
    let references: Vec<(&str, &RgbImage)> = names.iter().map(String::as_str).zip(scorer.references).collect();
    let page = DemoPage {
        artist: artist.name,
        trigger: DEMO_TRIGGER,
        artist_images: references,
        prompts: spread(prompts.collect(), PROMPTS_SHOWN),
        run: cat.page_run("CAT", CAT),
        baseline: lora.page_run("plain LoRA", LORA),
        more: Vec::new(),
        trade_off: Vec::new(),
        settings: facts(&cat.trained.settings),
        commands: COMMANDS.to_vec(),
        training_note: "CAT runs the model twice more at every step.",
        notice: Some(EMBEDDED_BASE_NOTICE),
    };
    page.html().failed("cannot write the report")
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
