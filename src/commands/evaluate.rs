//! `catelier evaluate`: how much of the base an adapter kept, and how well it learned.

use std::path::Path;

use catelier_evaluation::metrics::Better;
use catelier_evaluation::report::{EMBEDDED_BASE_NOTICE, EvaluationPage};
use catelier_evaluation::{METRICS, Metric, Scores};
use catelier_features::Clip;
use catelier_prompts::PromptSet;

use super::{output_folder, write_text};
use crate::adapter_source::LoadedAdapters;
use crate::base_source::{self, BaseSource};
use crate::cli::EvaluateArgs;
use crate::easel::{self, Easel};
use crate::failure::{Blame, Failure, Outcome};
use crate::scoring::{self, Questions};
use crate::{embedded, references, terminal};

/// Prompts of a set that are used: all of them.
const ALL: usize = usize::MAX;

pub(super) fn run(args: &EvaluateArgs) -> Outcome<()> {
    let requirements = args.require.iter().map(|text| Requirement::parse(text)).collect::<Outcome<Vec<_>>>()?;
    let references = references::read(args.references.as_deref())?;
    let (source, base) = base_source::load(&args.base)?;
    let base = easel::with_tiling(base, &args.sampling)?;
    let adapters = LoadedAdapters::read(std::slice::from_ref(&args.adapter), &base)?;
    let trigger = adapters.trigger(args.trigger.as_deref())?;
    let clip = clip(args.clip.as_deref(), &source)?;
    let questions =
        Questions::new(&prompt_set(args.prompts.as_deref(), &source)?, None, ALL, args.seeds, args.sampling.seed)?;
    output_folder(&args.out)?;

    let mut easel = Easel::new(&base, source.is_embedded(), &args.sampling)?;
    let drawn_by_base = questions.ask_base(&mut easel)?;
    let answers = questions.ask(&mut easel, &adapters.set, trigger.as_ref())?;
    let generation = easel.generation(Some(&args.adapter), trigger.as_ref().map(|trigger| trigger.word()));
    let evaluation = questions.evaluation(&drawn_by_base, &answers, &references, generation);
    let scores = scoring::score(&evaluation, &clip)?;

    questions.save(&args.out.join("base"), &drawn_by_base.0)?;
    questions.save(&args.out.join("without-trigger"), &answers.without_trigger)?;
    questions.save(&args.out.join("with-trigger"), &answers.with_trigger)?;
    write_text(&args.out.join("scores.json"), &scores.to_json())?;
    let mut page = EvaluationPage::new("What this adapter kept and learned", &evaluation, &scores);
    page.notice = source.is_embedded().then_some(EMBEDDED_BASE_NOTICE);
    write_text(&args.out.join("report.html"), &page.html().run("cannot write the report")?)?;
    tell(&scores, &args.out, args.json)?;
    requirements.iter().try_for_each(|requirement| requirement.check(&scores))
}

fn tell(scores: &Scores, out: &Path, json: bool) -> Outcome<()> {
    terminal::say(&format!("report: {}", out.join("report.html").display()));
    if json {
        return terminal::json(scores);
    }
    for metric in &METRICS {
        if let Some(score) = metric.of(scores) {
            let name = metric.name;
            let line = format!("{name:<18} {:.3}  ({:.3} to {:.3}, n {})", score.mean, score.low, score.high, score.n);
            terminal::data(&line)?;
        }
    }
    Ok(())
}

/// The prompts to ask: those named, or those written for this base.
fn prompt_set(name: Option<&str>, source: &BaseSource) -> Outcome<PromptSet> {
    let usual = base_source::prompt_set_name(source.is_embedded());
    PromptSet::named_or_file(name.unwrap_or(usual)).request("cannot read the prompts")
}

/// The CLIP model that compares pictures.
fn clip(folder: Option<&Path>, source: &BaseSource) -> Outcome<Clip> {
    match folder {
        Some(folder) => Clip::from_folder(folder, &candle_core::Device::Cpu).request("cannot load the CLIP model"),
        None if source.is_embedded() => embedded::clip(),
        None => Err(Failure::request(
            "no CLIP model to compare pictures with: the embedded one knows only the drawn world",
            "give `--clip DIR`, a folder with openai/clip-vit-base-patch32",
        )),
    }
}

/// A score that must be reached.
struct Requirement {
    metric: &'static Metric,
    least: f64,
}

impl Requirement {
    fn parse(text: &str) -> Outcome<Self> {
        let parts = text.split_once('=').and_then(|(name, value)| Some((name.trim(), value.trim().parse().ok()?)));
        match parts
            .and_then(|(name, least)| Some((Metric::named(name).filter(|metric| higher_is_better(metric))?, least)))
        {
            Some((metric, least)) => Ok(Self { metric, least }),
            None => {
                let names =
                    METRICS.iter().filter(|metric| higher_is_better(metric)).map(|metric| format!("`{}`", metric.name));
                let names = names.collect::<Vec<_>>().join(", ");
                Err(Failure::request(
                    format!("`{text}` is not a requirement"),
                    format!("write it as `kps_no_token=0.9`; scores are {names}"),
                ))
            }
        }
    }

    fn check(&self, scores: &Scores) -> Outcome<()> {
        let (Metric { name, needs, .. }, least) = (self.metric, self.least);
        match self.metric.of(scores).map(|score| score.mean) {
            Some(found) if found >= least => Ok(()),
            Some(found) => Err(Failure::NotReached(format!("{name} is {found:.3}, required {least}"))),
            None => Err(Failure::NotReached(format!("{name} could not be measured: it needs {needs}"))),
        }
    }
}

/// Whether a requirement, which is a least value, makes sense for the score.
fn higher_is_better(metric: &Metric) -> bool {
    metric.better == Better::Higher
}
