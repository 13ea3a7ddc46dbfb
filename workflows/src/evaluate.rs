//! How much of the base an adapter kept, and how well it learned.

use std::path::{Path, PathBuf};

use catelier_evaluation::Scores;
use catelier_evaluation::report::{EMBEDDED_BASE_NOTICE, EvaluationPage};
use catelier_prompts::PromptSet;

use crate::adapter::{AdapterSource, LoadedAdapters};
use crate::base::BaseRequest;
use crate::error::{Context, Result};
use crate::event::ArtefactKind;
use crate::generator::ImageGenerator;
use crate::images;
use crate::output::{self, OutputFolder};
use crate::scoring::{self, EvaluationPrompts, Scorer, Towers};
use crate::session::Session;
use crate::settings::SamplingSettings;

/// The command that makes folders of scores.
const COMMAND: &str = "evaluate";

const BASE: &str = "base";
const WITHOUT_TRIGGER: &str = "without-trigger";
const WITH_TRIGGER: &str = "with-trigger";
const SCORES: &str = "scores.json";
const REPORT: &str = "report.html";

/// Images for each prompt where nothing else is asked for.
const SEEDS: usize = 2;

/// An evaluation as it is asked for.
#[derive(Debug, Clone)]
pub struct EvaluateRequest {
    /// The adapter.
    pub adapter: AdapterSource,
    /// Its trigger; `None` takes it from the file.
    pub trigger: Option<String>,
    /// Folder of the artist's images, for `style` and `identity`.
    pub references: Option<PathBuf>,
    /// A prompt set by name, or a file; `None` takes the one that was written for the base.
    pub prompts: Option<String>,
    /// At most this many prompts of each kind; `None` takes all.
    pub prompts_per_kind: Option<usize>,
    /// Images for each prompt, whose seeds count up.
    pub seeds: usize,
    /// Folder of the CLIP model that compares images; `None` takes the embedded one, which knows the drawn world alone.
    pub clip: Option<PathBuf>,
    /// Folder of a model that sees style; `None` takes the embedded one where the CLIP model is, else the CLIP model.
    pub style_model: Option<PathBuf>,
    /// Folder with a folder of images for each artist from whom the adapter's images should be told.
    pub others: Option<PathBuf>,
    /// How images are generated.
    pub sampling: SamplingSettings,
    /// The base.
    pub base: BaseRequest,
    /// Where `scores.json`, the images and `report.html` go, in place of those of an earlier evaluation.
    pub out: PathBuf,
    /// Write beside files in `out` that no evaluation made; files in the way are refused all the same.
    pub force: bool,
}

impl EvaluateRequest {
    /// An evaluation of `adapter` on the embedded base, with results in `out`.
    pub fn new(adapter: AdapterSource, out: impl Into<PathBuf>) -> Self {
        Self {
            adapter,
            trigger: None,
            references: None,
            prompts: None,
            prompts_per_kind: None,
            seeds: SEEDS,
            clip: None,
            style_model: None,
            others: None,
            sampling: SamplingSettings::default(),
            base: BaseRequest::default(),
            out: out.into(),
            force: false,
        }
    }
}

/// An evaluation that is done.
#[derive(Debug, Clone)]
pub struct Evaluated {
    /// The scores.
    pub scores: Scores,
    /// The page for a browser.
    pub report: PathBuf,
}

/// Scores an adapter as `request` says.
///
/// # Errors
/// [`Error::User`](crate::Error::User) for a request that cannot be carried out,
/// [`Error::Failed`](crate::Error::Failed) when the base or the disk fails,
/// [`Error::Cancelled`](crate::Error::Cancelled) between sampler steps.
pub fn evaluate(request: &EvaluateRequest, session: &Session<'_>) -> Result<Evaluated> {
    let references = images::read_references(request.references.as_deref())?;
    let others = images::read_artists(request.others.as_deref())?;
    let out = OutputFolder::claim(&request.out, COMMAND, request.force, session)?;
    out.refuse_unknown(&[BASE, WITHOUT_TRIGGER, WITH_TRIGGER, SCORES, REPORT])?;
    for part in [BASE, WITHOUT_TRIGGER, WITH_TRIGGER] {
        // Before the work, which would be lost.
        out.to_clear(Path::new(part), &scoring::is_saved_image)?;
    }
    let base = request.base.load(session)?;
    let sampling = request.sampling.clone().resolve(&base.defaults());
    let base = base.with_tiling(&sampling, session)?;
    let adapters = LoadedAdapters::read(std::slice::from_ref(&request.adapter), &base.model, session)?;
    let trigger = adapters.trigger(request.trigger.as_deref())?;
    let towers = Towers::load(request.clip.as_deref(), request.style_model.as_deref(), &base)?;
    let set = PromptSet::named_or_file(request.prompts.as_deref().unwrap_or(base.prompt_set()));
    let set = set.user_error("cannot read the prompts")?;
    let per_kind = request.prompts_per_kind.unwrap_or(usize::MAX);
    let prompts = EvaluationPrompts::new(&set, per_kind, request.seeds, sampling.seed)?;

    let mut generator = ImageGenerator::new(&base, &sampling).with_triggers(trigger.iter().cloned().collect());
    let base_images = prompts.generate_base(&mut generator, session)?;
    let images = prompts.generate(&mut generator, &adapters.set, trigger.as_ref(), session)?;
    let name = adapter_name(&request.adapter);
    let generation = generator.generation(Some(&name), trigger.as_ref().map(|trigger| trigger.word()));
    let scorer = Scorer {
        prompts: &prompts,
        base: &base_images,
        references: &references,
        others: &others,
        choices: prompts.choices(&base, &references),
        towers: &towers,
    };
    let evaluation = scorer.evaluation(&images, generation);
    let scores = scorer.score(&evaluation, session)?;

    let folders =
        [(BASE, &base_images.0), (WITHOUT_TRIGGER, &images.without_trigger), (WITH_TRIGGER, &images.with_trigger)];
    for (folder, images) in folders {
        out.clear(Path::new(folder), &scoring::is_saved_image)?;
        prompts.save(&request.out.join(folder), images, session)?;
    }
    let scores_file = request.out.join(SCORES);
    output::write_text(&scores_file, &scores.to_json())?;
    session.written(ArtefactKind::Scores, scores_file);
    let mut page = EvaluationPage::new("What this adapter kept and learned", &evaluation, &scores);
    page.notice = base.is_embedded.then_some(EMBEDDED_BASE_NOTICE);
    let report = request.out.join(REPORT);
    output::write_text(&report, &page.html().failed("cannot write the report")?)?;
    session.written(ArtefactKind::Report, &report);
    out.finish()?;
    Ok(Evaluated { scores, report })
}

/// The adapter as score files name it: with its weight where that is not 1.
fn adapter_name(adapter: &AdapterSource) -> String {
    if adapter.weight == 1.0 { adapter.to_string() } else { format!("{adapter}:{}", adapter.weight) }
}
