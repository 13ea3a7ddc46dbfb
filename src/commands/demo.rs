//! `catelier demo`: the whole story on the embedded base, ending in one page.

use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device};
use catelier_adapters::AdapterSet;
use catelier_evaluation::Scores;
use catelier_evaluation::report::{
    AdaptedImages, Command, DemoPage, DemoPrompt, EMBEDDED_BASE_NOTICE, Run, Setting, TrainingCurves,
};
use catelier_gallery::Artist;
use catelier_pipelines::base::BaseModel;
use catelier_pipelines::train::StepReport;
use catelier_prompts::{PromptSet, Trigger};
use image::RgbImage;

use super::train::{self, Trained};
use super::{gallery, output_folder, write_text};
use crate::base_source::BaseSource;
use crate::cli::{DemoArgs, SamplingArgs};
use crate::easel::Easel;
use crate::failure::{Blame, Outcome};
use crate::run_folder::RunFolder;
use crate::scoring::{self, Answers, BaseAnswers, Questions};
use crate::settings::TrainSettings;
use crate::{embedded, references, terminal};

/// Guidance leads away from what an adapter draws for the empty prompt. CAT leaves that to the base, so that it would
/// exaggerate the style too; the base itself draws as well with little of it.
const GUIDANCE: f64 = 1.5;

/// A word that means nothing, as artists choose one.
const TRIGGER: &str = "shs";
const PICTURES: usize = 10;
/// Evaluation prompts of each kind.
const PROMPTS_PER_KIND: usize = 4;
/// Prompts that the page shows in full.
const PROMPTS_SHOWN: usize = 6;

/// One way of training, and what came of it.
struct Result {
    trained: Trained,
    answers: Answers,
    scores: Scores,
    seconds: f64,
}

pub(super) fn run(args: &DemoArgs) -> Outcome<()> {
    let started = Instant::now();
    let artist = Artist::named(args.artist.as_deref().unwrap_or(catelier_gallery::DEFAULT_ARTIST))
        .request("cannot draw the pictures")?;
    let pictures = args.out.join("pictures");
    output_folder(&args.out)?;
    terminal::say(&format!("{} draws {PICTURES} pictures", artist.name));
    gallery::write_pictures(artist, PICTURES, args.seed, &pictures)?;

    let base = BaseSource::Embedded.load(DType::F32, &Device::Cpu)?;
    let clip = embedded::clip()?;
    let set = PromptSet::builtin("gallery-v1").run("cannot read the embedded prompts")?;
    let per_kind = args.prompts.unwrap_or(PROMPTS_PER_KIND);
    let questions = Questions::new(&set, None, per_kind, 1, args.seed)?;
    let sampling = SamplingArgs { guidance: Some(GUIDANCE), ..SamplingArgs::default_with_seed(args.seed) };
    let mut easel = Easel::new(&base, true, &sampling)?;
    let drawn_by_base = questions.ask_base(&mut easel)?;
    let references = references::read(Some(&pictures))?;

    let mut compete = |loss: &str| -> Outcome<Result> {
        let started = Instant::now();
        let trained = train_one(args, &base, &pictures, loss)?;
        let seconds = started.elapsed().as_secs_f64();
        let trigger = Trigger::new(TRIGGER).run("cannot use the trigger")?;
        let answers = questions.ask(&mut easel, &AdapterSet::single(&trained.adapter, 1.0), Some(&trigger))?;
        let generation = easel.generation(Some(loss), Some(TRIGGER));
        let evaluation = questions.evaluation(&drawn_by_base, &answers, &references, generation);
        let scores = scoring::score(&evaluation, &clip)?;
        Ok(Result { trained, answers, scores, seconds })
    };
    let (cat, lora) = (compete("cat")?, compete("lora")?);

    let page = page(args, artist, &questions, &drawn_by_base, &references, [&cat, &lora])?;
    let report = args.out.join("report.html");
    write_text(&report, &page)?;
    terminal::say(&summary("CAT", &cat.scores));
    terminal::say(&summary("plain LoRA", &lora.scores));
    terminal::say(&format!("done in {:.0} s; open {}", started.elapsed().as_secs_f64(), report.display()));
    Ok(())
}

/// Trains as `catelier train` does, into `DIR/cat` or `DIR/lora`; an earlier demo there gives way.
fn train_one(args: &DemoArgs, base: &BaseModel, pictures: &Path, loss: &str) -> Outcome<Trained> {
    let settings = TrainSettings {
        images: Some(pictures.to_path_buf()),
        trigger: Some(TRIGGER.to_string()),
        loss: Some(loss.to_string()),
        steps: args.steps,
        seed: Some(args.seed),
        ..TrainSettings::default()
    };
    let folder = RunFolder::replace(&args.out.join(loss))?;
    train::train(base, settings.complete(&train::defaults(base, true)), &folder, train::Start::Fresh)
}

fn page(
    args: &DemoArgs,
    artist: &Artist,
    questions: &Questions,
    base: &BaseAnswers,
    pictures: &[RgbImage],
    [cat, lora]: [&Result; 2],
) -> Outcome<String> {
    let names: Vec<String> = (1..=pictures.len()).map(|number| format!("picture {number}")).collect();
    let prompts = questions.iter().enumerate().map(|(index, (prompt, seed))| DemoPrompt {
        prompt: &prompt.text,
        seed,
        base: &base.0[index],
        adapted: [cat, lora].map(|result| result.images(index)).to_vec(),
    });
    let page = DemoPage {
        artist: artist.name,
        trigger: TRIGGER,
        artist_images: names.iter().map(String::as_str).zip(pictures).collect(),
        prompts: spread(prompts.collect(), PROMPTS_SHOWN),
        run: cat.run("CAT", CAT),
        baseline: lora.run("plain LoRA", LORA),
        more: Vec::new(),
        trade_off: Vec::new(),
        settings: facts(&cat.trained.settings, args.seed),
        training_note: "CAT runs the model twice more at every step.",
        commands: COMMANDS.to_vec(),
        notice: Some(EMBEDDED_BASE_NOTICE),
    };
    page.html().run("cannot write the report")
}

const CAT: &str = "CAT (Contrastive Adapter Training) also had to leave everything else alone: without the trigger, draw as if nothing had been learned.";
const LORA: &str = "Plain LoRA only learned to draw them.";

const COMMANDS: [Command<'static>; 3] = [
    Command {
        explanation: "Train on your own pictures",
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

impl Result {
    fn run<'a>(&'a self, name: &'a str, method: &'a str) -> Run<'a> {
        Run { name, method, scores: &self.scores, curves: curves(&self.trained.reports), seconds: self.seconds }
    }

    /// The images of one prompt.
    fn images(&self, index: usize) -> AdaptedImages<'_> {
        let (without_trigger, with_trigger) = (&self.answers.without_trigger[index], &self.answers.with_trigger[index]);
        AdaptedImages { without_trigger, with_trigger }
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

fn facts(settings: &TrainSettings, seed: u64) -> Vec<Setting> {
    let number = |value: Option<usize>| value.map_or_else(String::new, |value| value.to_string());
    let facts = [
        ("Steps", number(settings.steps)),
        ("Pictures per step", number(settings.batch)),
        ("Learning rate", settings.learning_rate.map_or_else(String::new, |rate| rate.to_string())),
        ("Rank", number(settings.rank)),
        ("Seed", seed.to_string()),
    ];
    facts.into_iter().map(|(name, value)| Setting { name: name.to_string(), value }).collect()
}

/// At most `count` of `items`, evenly spread.
fn spread<T>(items: Vec<T>, count: usize) -> Vec<T> {
    let every = items.len().div_ceil(count.max(1)).max(1);
    items.into_iter().step_by(every).collect()
}

fn summary(name: &str, scores: &Scores) -> String {
    let identity = scores.identity.map_or_else(|| "-".to_string(), |identity| format!("{:.3}", identity.mean));
    format!("{name:<11} kept {:.3} (kps_no_token), style {identity} (identity)", scores.kps_no_token.mean)
}
