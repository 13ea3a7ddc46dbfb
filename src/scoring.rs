//! The pictures that an adapter is judged by, and their scores.

use std::path::Path;

use catelier_adapters::AdapterSet;
use catelier_evaluation::{Evaluation, Generation, PicturePair, Scores, TriggerPicture};
use catelier_features::Clip;
use catelier_pipelines::picture_file;
use catelier_prompts::{Prompt, PromptKind, PromptSet, Trigger};
use image::RgbImage;
use serde::Serialize;

use crate::easel::Easel;
use crate::failure::{Blame, Outcome};

/// Seed of the bootstrap behind every interval.
const BOOTSTRAP_SEED: u64 = 0;

/// What is drawn to judge an adapter: every prompt with every seed.
pub(crate) struct Questions {
    items: Vec<(Prompt, u64)>,
}

/// What the base draws for the questions; drawn once and shared by all adapters.
pub(crate) struct BaseAnswers(pub(crate) Vec<RgbImage>);

/// What an adapter draws for the questions, without and with its trigger.
pub(crate) struct Answers {
    pub(crate) without_trigger: Vec<RgbImage>,
    pub(crate) with_trigger: Vec<RgbImage>,
}

impl Questions {
    /// The prompts of `set`, at most `per_kind` of each kind, each with `seeds` seeds from `first_seed` on.
    pub(crate) fn new(
        set: &PromptSet,
        class: Option<&str>,
        per_kind: usize,
        seeds: usize,
        first_seed: u64,
    ) -> Outcome<Self> {
        let values = catelier_prompts::template::Values { class, ..Default::default() };
        let rendered = set.render(values).request(format!("cannot use the prompt set `{}`", set.name()))?;
        let mut items = Vec::new();
        for kind in [PromptKind::SameClass, PromptKind::Unrelated, PromptKind::Generic] {
            let of_kind = rendered.prompts.iter().filter(|prompt| prompt.kind == kind).take(per_kind);
            for prompt in of_kind {
                items.extend((0..seeds as u64).map(|seed| (prompt.clone(), first_seed + seed)));
            }
        }
        Ok(Self { items })
    }

    /// Prompts and seeds, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Prompt, u64)> {
        self.items.iter().map(|(prompt, seed)| (prompt, *seed))
    }

    fn prompts(&self) -> Vec<String> {
        self.items.iter().map(|(prompt, _)| prompt.text.clone()).collect()
    }

    fn seeds(&self) -> Vec<u64> {
        self.items.iter().map(|(_, seed)| *seed).collect()
    }

    /// What the base draws.
    pub(crate) fn ask_base(&self, easel: &mut Easel<'_>) -> Outcome<BaseAnswers> {
        Ok(BaseAnswers(easel.draw("base", &self.prompts(), &self.seeds(), &AdapterSet::base())?))
    }

    /// What the base draws with `adapters`, for the prompts as they are and with the trigger in front.
    pub(crate) fn ask(
        &self,
        easel: &mut Easel<'_>,
        adapters: &AdapterSet,
        trigger: Option<&Trigger>,
    ) -> Outcome<Answers> {
        let without_trigger = easel.draw("no trigger", &self.prompts(), &self.seeds(), adapters)?;
        let with_trigger = match trigger {
            None => Vec::new(),
            Some(trigger) => {
                let prompts = self.prompts().iter().map(|prompt| trigger.insert(prompt).caption).collect::<Vec<_>>();
                easel.draw("with trigger", &prompts, &self.seeds(), adapters)?
            }
        };
        Ok(Answers { without_trigger, with_trigger })
    }

    /// All of it as the evaluation room takes it.
    pub(crate) fn evaluation<'p>(
        &self,
        base: &'p BaseAnswers,
        answers: &'p Answers,
        references: &'p [RgbImage],
        generation: Generation,
    ) -> Evaluation<'p> {
        let pairs = self.items.iter().zip(&base.0).zip(&answers.without_trigger);
        let triggered = self.items.iter().zip(&answers.with_trigger);
        Evaluation {
            without_trigger: pairs
                .map(|(((prompt, seed), base), adapted)| pair(prompt, *seed, base, adapted))
                .collect(),
            with_trigger: triggered
                .map(|((prompt, seed), adapted)| TriggerPicture { prompt: prompt.text.clone(), seed: *seed, adapted })
                .collect(),
            references: references.iter().collect(),
            generation,
            bootstrap_seed: BOOTSTRAP_SEED,
        }
    }

    /// Writes one set of answers as PNG files with a `metadata.jsonl` that names their prompts.
    pub(crate) fn save(&self, folder: &Path, pictures: &[RgbImage]) -> Outcome<()> {
        super::commands::output_folder(folder)?;
        let mut lines = String::new();
        for (index, ((prompt, seed), picture)) in self.items.iter().zip(pictures).enumerate() {
            let file_name = format!("{index:04}.png");
            picture_file::write_png(&folder.join(&file_name), picture, None).run("cannot save a picture")?;
            let line = PictureLine { file_name, text: &prompt.text, kind: prompt.kind, seed: *seed };
            lines += &serde_json::to_string(&line).run("cannot describe a picture")?;
            lines.push('\n');
        }
        super::commands::write_text(&folder.join("metadata.jsonl"), &lines)
    }
}

/// The scores of an evaluation.
pub(crate) fn score(evaluation: &Evaluation<'_>, clip: &Clip) -> Outcome<Scores> {
    evaluation.score(clip).run("cannot score the pictures")
}

/// One line of a `metadata.jsonl`.
#[derive(Serialize)]
struct PictureLine<'a> {
    file_name: String,
    text: &'a str,
    kind: PromptKind,
    seed: u64,
}

fn pair<'p>(prompt: &Prompt, seed: u64, base: &'p RgbImage, adapted: &'p RgbImage) -> PicturePair<'p> {
    PicturePair { prompt: prompt.text.clone(), kind: prompt.kind, class: None, seed, base, adapted }
}
