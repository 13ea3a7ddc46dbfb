//! The images that an adapter is scored by, and their scores.

use std::path::Path;

use candle_core::Device;
use catelier_adapters::AdapterSet;
use catelier_evaluation::{
    Choices, Evaluation, Generation, ImagePair, Models, OtherArtist, Reference, Scores, TriggerImage,
};
use catelier_features::clip::ImageEncoder;
use catelier_features::{Clip, Extractor, Feature, ImageFeatures, TextFeatures};
use catelier_pipelines::generation::image_file;
use catelier_prompts::{Prompt, PromptKind, PromptSet, Trigger};
use image::RgbImage;
use serde::Serialize;

use crate::base::Base;
use crate::error::{Context, Error, Result};
use crate::event::{ArtefactKind, Event, Stage};
use crate::generator::{ImageGenerator, Images};
use crate::session::Session;
use crate::{drawn, embedded, images, output};

/// Seed of the bootstrap behind every interval.
const BOOTSTRAP_SEED: u64 = 0;

/// What is generated to score an adapter: every prompt with every seed.
pub struct EvaluationPrompts {
    items: Vec<(Prompt, u64)>,
}

/// The base's images of the evaluation prompts; generated once and shared by all adapters.
pub struct BaseImages(pub Vec<RgbImage>);

/// An adapter's images of the evaluation prompts, without and with its trigger.
pub struct AdapterImages {
    /// Of the prompts as they are.
    pub without_trigger: Vec<RgbImage>,
    /// Of the prompts with the trigger in front; empty where there is no trigger.
    pub with_trigger: Vec<RgbImage>,
}

/// What scores compare, besides one adapter's images.
pub struct Scorer<'a> {
    /// The prompts.
    pub prompts: &'a EvaluationPrompts,
    /// The base's images of them.
    pub base: &'a BaseImages,
    /// The artist's images.
    pub references: &'a [Reference],
    /// Other artists, from whom the adapter's images should be told.
    pub others: &'a [OtherArtist],
    /// What the prompts ask for: [`EvaluationPrompts::choices`].
    pub choices: Choices,
    /// The models that compare images.
    pub towers: &'a Towers,
}

/// The models that compare images.
pub struct Towers {
    /// Sees content, and reads.
    clip: Clip,
    /// Sees style; without one, the CLIP has to.
    style: Option<ImageEncoder>,
}

impl Towers {
    /// The embedded ones, which know the drawn world alone.
    ///
    /// # Errors
    /// [`Error::Failed`] for a damaged program.
    pub fn embedded() -> Result<Self> {
        Ok(Self { clip: embedded::clip()?, style: Some(embedded::style()?) })
    }

    /// The model that sees content.
    pub(crate) fn clip(&self) -> &dyn ImageFeatures {
        &self.clip
    }

    /// The model that sees style.
    pub(crate) fn style(&self) -> &dyn ImageFeatures {
        self.style.as_ref().map_or(&self.clip, |style| style as &dyn ImageFeatures)
    }

    /// Those in folders; without a folder the embedded ones, where `base` is the embedded base.
    ///
    /// # Errors
    /// [`Error::User`] for a folder that cannot be loaded, and for another base without a CLIP.
    pub fn load(clip: Option<&Path>, style: Option<&Path>, base: &Base) -> Result<Self> {
        let style = match style {
            Some(folder) => {
                Some(ImageEncoder::from_folder(folder, &Device::Cpu).user_error("cannot load the style model")?)
            }
            None if base.is_embedded && clip.is_none() => Some(embedded::style()?),
            None => None,
        };
        let clip = match clip {
            Some(folder) => Clip::from_folder(folder, &Device::Cpu).user_error("cannot load the CLIP model")?,
            None if base.is_embedded => embedded::clip()?,
            None => {
                return Err(Error::user(
                    "no CLIP model to compare images with: the embedded one knows only the drawn world",
                    "give `--clip DIR`, a folder with openai/clip-vit-base-patch32",
                ));
            }
        };
        Ok(Self { clip, style })
    }
}

impl EvaluationPrompts {
    /// The prompts of `set`, at most `per_kind` of each kind, each with `seeds` seeds from `first_seed` on.
    ///
    /// # Errors
    /// [`Error::User`] for a set with placeholders.
    pub fn new(set: &PromptSet, per_kind: usize, seeds: usize, first_seed: u64) -> Result<Self> {
        let rendered = set.render(Default::default());
        let rendered = rendered.user_error(format!("cannot use the prompt set `{}`", set.name()))?;
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
    pub fn iter(&self) -> impl Iterator<Item = (&Prompt, u64)> {
        self.items.iter().map(|(prompt, seed)| (prompt, *seed))
    }

    /// What the prompts ask for, and texts that ask for other things: every scene of the drawn world for a base that knows it, and
    /// then also what the captions of references say; the other prompts for another base.
    pub fn choices(&self, base: &Base, references: &[Reference]) -> Choices {
        let prompts = self.items.iter().map(|(prompt, _)| prompt.text.as_str());
        let captions = references.iter().filter_map(|reference| reference.caption.as_deref());
        if base.is_embedded { drawn::choices(prompts.chain(captions)) } else { Choices::among(prompts) }
    }

    fn texts(&self) -> Vec<String> {
        self.items.iter().map(|(prompt, _)| prompt.text.clone()).collect()
    }

    fn seeds(&self) -> Vec<u64> {
        self.items.iter().map(|(_, seed)| *seed).collect()
    }

    /// The base's images.
    ///
    /// # Errors
    /// Those of [`ImageGenerator::generate`].
    pub fn generate_base(&self, generator: &mut ImageGenerator<'_>, session: &Session<'_>) -> Result<BaseImages> {
        let images = Images { prompts: &self.texts(), seeds: &self.seeds() };
        generator.generate(Stage::GenerateBase, images, &AdapterSet::base(), session).map(BaseImages)
    }

    /// The images with `adapters`, for the prompts as they are and with the trigger in front.
    ///
    /// # Errors
    /// Those of [`ImageGenerator::generate`].
    pub fn generate(
        &self,
        generator: &mut ImageGenerator<'_>,
        adapters: &AdapterSet,
        trigger: Option<&Trigger>,
        session: &Session<'_>,
    ) -> Result<AdapterImages> {
        let (texts, seeds) = (self.texts(), self.seeds());
        let images = Images { prompts: &texts, seeds: &seeds };
        let without_trigger = generator.generate(Stage::GenerateWithoutTrigger, images, adapters, session)?;
        let with_trigger = match trigger {
            None => Vec::new(),
            Some(trigger) => {
                let prompts: Vec<String> = texts.iter().map(|prompt| trigger.insert(prompt).caption).collect();
                let images = Images { prompts: &prompts, seeds: &seeds };
                generator.generate(Stage::GenerateWithTrigger, images, adapters, session)?
            }
        };
        Ok(AdapterImages { without_trigger, with_trigger })
    }

    /// Writes one set of images as PNG files with a `metadata.jsonl` that names their prompts.
    ///
    /// # Errors
    /// [`Error::Failed`] when a file cannot be written.
    pub fn save(&self, folder: &Path, images: &[RgbImage], session: &Session<'_>) -> Result<()> {
        output::make_folder(folder)?;
        let mut lines = String::new();
        for (index, ((prompt, seed), image)) in self.items.iter().zip(images).enumerate() {
            let file_name = format!("{index:04}.png");
            image_file::write_png(&folder.join(&file_name), image, None).failed("cannot save an image")?;
            let line = ImageLine { file_name, text: &prompt.text, kind: prompt.kind, seed: *seed };
            lines += &serde_json::to_string(&line).failed("cannot describe an image")?;
            lines.push('\n');
        }
        output::write_text(&folder.join("metadata.jsonl"), &lines)?;
        session.written(ArtefactKind::Images, folder);
        Ok(())
    }
}

/// Whether [`EvaluationPrompts::save`] gives a file this name: `0000.png` and `metadata.jsonl`.
pub(crate) fn is_saved_image(file: &Path) -> bool {
    file == Path::new("metadata.jsonl") || images::is_numbered(file, &["png"])
}

impl Scorer<'_> {
    /// An adapter's images as the evaluation room takes them.
    pub fn evaluation<'i>(&'i self, images: &'i AdapterImages, generation: Generation) -> Evaluation<'i> {
        let items = &self.prompts.items;
        let pairs = items.iter().zip(&self.base.0).zip(&images.without_trigger);
        let triggered = items.iter().zip(&images.with_trigger);
        Evaluation {
            without_trigger: pairs
                .map(|(((prompt, seed), base), adapted)| pair(prompt, *seed, base, adapted))
                .collect(),
            with_trigger: triggered
                .map(|((prompt, seed), adapted)| TriggerImage { prompt: prompt.text.clone(), seed: *seed, adapted })
                .collect(),
            references: self.references,
            others: self.others,
            choices: &self.choices,
            generation,
            bootstrap_seed: BOOTSTRAP_SEED,
        }
    }

    /// The scores of an evaluation, reported under the adapter's name.
    ///
    /// # Errors
    /// [`Error::Failed`] for an evaluation without images,
    /// [`Error::Cancelled`] between a few images.
    pub fn score(&self, evaluation: &Evaluation<'_>, session: &Session<'_>) -> Result<Scores> {
        let clip = Stoppable { model: &self.towers.clip, session };
        let style = self.towers.style.as_ref().map(|model| Stoppable { model, session });
        let style = style.as_ref().map(|style| style as &dyn ImageFeatures);
        let scores = evaluation.score(Models { clip: &clip, style }).failed("cannot score the images")?;
        session.check_cancelled()?;
        let adapter = evaluation.generation.adapter.clone().unwrap_or_default();
        session.report(Event::Scores { adapter, scores: Box::new(scores.clone()) });
        Ok(scores)
    }
}

/// A model that measures some images at a time, and no more once somebody asked to stop.
struct Stoppable<'a, 's, M> {
    model: &'a M,
    session: &'a Session<'s>,
}

/// Images that are measured at a time: several of the batches that the model makes of any list, so that those stay the same.
const MEASURED_TOGETHER: usize = 32;

impl<M: ImageFeatures> ImageFeatures for Stoppable<'_, '_, M> {
    fn extractor(&self) -> &Extractor {
        self.model.extractor()
    }

    fn image_features(&self, images: &[&RgbImage]) -> catelier_features::Result<Vec<Feature>> {
        let mut features = Vec::with_capacity(images.len());
        for images in images.chunks(MEASURED_TOGETHER) {
            if self.session.is_cancelled() {
                return Err(catelier_features::Error::Cancelled);
            }
            features.extend(self.model.image_features(images)?);
        }
        Ok(features)
    }
}

impl<M: TextFeatures> TextFeatures for Stoppable<'_, '_, M> {
    fn text_features(&self, texts: &[&str]) -> catelier_features::Result<Vec<Feature>> {
        self.model.text_features(texts)
    }
}

/// One line of a `metadata.jsonl`.
#[derive(Serialize)]
struct ImageLine<'a> {
    file_name: String,
    text: &'a str,
    kind: PromptKind,
    seed: u64,
}

fn pair<'p>(prompt: &Prompt, seed: u64, base: &'p RgbImage, adapted: &'p RgbImage) -> ImagePair<'p> {
    ImagePair { prompt: prompt.text.clone(), kind: prompt.kind, class: None, seed, base, adapted }
}
