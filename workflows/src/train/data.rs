//! What a run learns from, read and encoded: once, for any number of runs.

use catelier_adapters::AdapterSet;
use catelier_pipelines::data::{TrainingImage, TrainingImages};
use catelier_pipelines::training::{EncodedDataset, HeldOutPrompts, LossKind, TrainConfig};
use catelier_prompts::PromptSet;
use image::RgbImage;

use crate::base::Base;
use crate::error::{Context, Result};
use crate::event::Stage;
use crate::generator::{ImageGenerator, Images};
use crate::images::load_training;
use crate::session::Session;
use crate::settings::train::required;
use crate::settings::{ResolvedSampling, ResolvedTrain, SamplingSettings};
use crate::value::{ImageSize, Text};

/// Held-out prompts that the drift is measured on.
const DRIFT_PROMPTS: usize = 8;

/// Images and captions encoded for one base, and the held-out prompts of the drift.
///
/// Runs on the same data may differ in all settings but those of the images and their captions (`images`, `trigger`,
/// `caption`, `class`, `resolution`, `crop`, `flip`, `cat_condition`), the seed of random crops, and the class images of the
/// dreambooth loss.
#[derive(Debug, Clone)]
pub struct TrainingData {
    dataset: EncodedDataset,
    /// `None` where the settings asked for no drift.
    drift_prompts: Option<HeldOutPrompts>,
}

impl TrainingData {
    /// Reads the images of `settings` and encodes them; their pixels are dropped.
    ///
    /// # Errors
    /// As [`load_training`] and [`encode`](Self::encode).
    pub fn load(base: &Base, settings: &ResolvedTrain, session: &Session<'_>) -> Result<Self> {
        Self::encode(base, load_training(settings, session)?, settings, session)
    }

    /// Encodes images and their captions, with the class images that the loss needs.
    ///
    /// # Errors
    /// [`Error::User`](crate::Error::User) for a loss or condition that lacks the class,
    /// [`Error::Cancelled`](crate::Error::Cancelled) between images.
    pub fn encode(
        base: &Base,
        images: TrainingImages,
        settings: &ResolvedTrain,
        session: &Session<'_>,
    ) -> Result<Self> {
        warn_of_cut_captions(base, &images, session);
        let class = settings.class.as_deref();
        let mut encoded = |done, total| session.progress(Stage::Encode, done, total, "");
        let dataset = EncodedDataset::encode(&base.model, &images, settings.cat_condition, class, &mut encoded)
            .user_error("cannot encode the images")?;
        drop(images);
        let dataset = match settings.loss {
            LossKind::Dreambooth => with_class_images(dataset, base, settings, session)?,
            _ => dataset,
        };
        let drift_prompts = (settings.drift_every > 0).then(|| drift_prompts(base)).transpose()?;
        Ok(Self { dataset, drift_prompts })
    }

    /// The images of several, each with its own captions and trigger; at least one. There are no prompts of a drift.
    pub(crate) fn together<'t>(parts: impl Iterator<Item = &'t Self>) -> Self {
        Self { dataset: EncodedDataset::together(parts.map(|part| &part.dataset)), drift_prompts: None }
    }

    /// These images first and then those of `own`, which an epoch shows as often as these.
    pub(crate) fn before(&self, own: &Self) -> Self {
        let repeats = self.dataset.samples.len().div_ceil(own.dataset.samples.len());
        let own = own.dataset.clone().repeated(repeats);
        Self { dataset: EncodedDataset::together([&self.dataset, &own].into_iter()), drift_prompts: None }
    }

    /// The encoded images and captions.
    pub(crate) fn encoded(&self) -> &EncodedDataset {
        &self.dataset
    }

    /// Number of images; mirrored ones count twice.
    pub(super) fn image_count(&self) -> usize {
        self.dataset.samples.len()
    }

    /// The images and captions as a run with `config` takes them.
    pub(super) fn dataset(&self, base: &Base, config: &TrainConfig) -> Result<EncodedDataset> {
        self.dataset.clone().with_keys(&base.model, config).user_error("cannot train")
    }

    /// The prompts whose predictions should not drift, encoded.
    pub(super) fn drift_prompts(&self, base: &Base) -> Result<HeldOutPrompts> {
        self.drift_prompts.clone().map_or_else(|| drift_prompts(base), Ok)
    }
}

fn warn_of_cut_captions(base: &Base, images: &TrainingImages, session: &Session<'_>) {
    let dropped = |image: &TrainingImage| base.model.text.tokens(&image.captions.with_trigger).ok()?.dropped;
    let cut: Vec<_> = images.images.iter().filter_map(|image| Some((&image.name, dropped(image)?))).collect();
    if let Some((name, dropped)) = cut.first() {
        session.warn(format!(
            "{} of {} captions are too long for this base; of `{name}`, `{dropped}` is dropped",
            cut.len(),
            images.images.len(),
        ));
    }
}

/// With images of the class as the base generates them.
fn with_class_images(
    dataset: EncodedDataset,
    base: &Base,
    settings: &ResolvedTrain,
    session: &Session<'_>,
) -> Result<EncodedDataset> {
    let class = required("class", settings.class.clone())?;
    let images = class_images(base, &class, settings, session)?;
    dataset.with_class_images(&base.model, &class, &images).failed("cannot encode the class images")
}

fn class_images(base: &Base, class: &str, settings: &ResolvedTrain, session: &Session<'_>) -> Result<Vec<RgbImage>> {
    let sampling = sampling_of(base, settings);
    let prompts = vec![class.to_string(); settings.class_images];
    let seeds: Vec<u64> = (0..prompts.len() as u64).map(|number| sampling.seed + number).collect();
    let images = Images { prompts: &prompts, seeds: &seeds };
    ImageGenerator::new(base, &sampling).generate(Stage::ClassImages, images, &AdapterSet::base(), session)
}

/// How previews and class images are generated: at the size of the training images.
pub(super) fn sampling_of(base: &Base, settings: &ResolvedTrain) -> ResolvedSampling {
    let size = Text(ImageSize::square(settings.resolution));
    let asked = SamplingSettings { size: Some(size), seed: Some(settings.seed), ..SamplingSettings::default() };
    asked.resolve(&base.defaults())
}

fn drift_prompts(base: &Base) -> Result<HeldOutPrompts> {
    let set = PromptSet::builtin(base.prompt_set()).failed("cannot read the held-out prompts")?;
    let rendered = set.render(Default::default()).failed("cannot use the held-out prompts")?;
    let prompts: Vec<&str> = rendered.prompts.iter().map(|prompt| prompt.text.as_str()).collect();
    let spread: Vec<&str> = prompts.iter().copied().step_by(prompts.len().div_ceil(DRIFT_PROMPTS)).collect();
    HeldOutPrompts::encode(&base.model, &spread).failed("cannot encode the held-out prompts")
}
