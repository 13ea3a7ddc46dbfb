//! The adapters of a simulated federation, scored with the same prompts and seeds.

use catelier_adapters::{Adapter, AdapterSet};
use catelier_prompts::{PromptSet, Trigger};
use serde::Serialize;

use super::Work;
use super::client::SimulatedClient;
use super::page::Shown;
use crate::error::{Context, Result};
use crate::generator::ImageGenerator;
use crate::scoring::{BaseImages, EvaluationPrompts, Scorer, Towers};
use crate::settings::SamplingSettings;

/// An artist, scored with one adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SimulationScore {
    /// The artist's name.
    pub artist: &'static str,
    /// `own` (of the artist's last round), `averaged` (the global one), `tuned` (the global one, tuned at home), `alone` (trained
    /// without the others), `together` (trained on the images of all), and of artists that joined late `late` and `late alone`.
    pub adapter: &'static str,
    /// The round after which the global adapter was scored; `null` for the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
    /// Mean of the style score; `null` where it cannot be measured.
    pub style: Option<f64>,
    /// Mean of the content score; `null` where it cannot be measured.
    pub content: Option<f64>,
    /// Mean of the preservation score; `null` where it cannot be measured.
    pub preservation: Option<f64>,
    /// Mean of the identity score; `null` where it cannot be measured.
    pub identity: Option<f64>,
    /// Mean of the score without the trigger.
    pub kps_no_token: f64,
}

/// Scores adapters with the same prompts and seeds.
pub(super) struct Evaluator<'a, 's> {
    work: Work<'a, 's>,
    generator: ImageGenerator<'a>,
    towers: Towers,
    prompts: EvaluationPrompts,
    base_images: BaseImages,
    shown: Vec<Shown>,
}

impl<'a, 's> Evaluator<'a, 's> {
    pub(super) fn new(work: Work<'a, 's>) -> Result<Self> {
        let Work { base, settings, session, .. } = work;
        let set = PromptSet::builtin(base.prompt_set()).failed("cannot read the embedded prompts")?;
        let prompts = EvaluationPrompts::new(&set, settings.prompts, 1, settings.seed)?;
        let sampling = SamplingSettings { steps: Some(settings.sampling_steps), ..SamplingSettings::default() };
        let mut generator = ImageGenerator::new(base, &sampling.resolve(&base.defaults()));
        let base_images = prompts.generate_base(&mut generator, session)?;
        Ok(Self { work, generator, towers: Towers::embedded()?, prompts, base_images, shown: Vec::new() })
    }

    /// The images of the first prompt by the adapters that were scored at the end, and that prompt.
    pub(super) fn shown(&self) -> (&[Shown], &str) {
        (&self.shown, self.prompts.iter().next().map_or("", |(prompt, _)| &prompt.text))
    }

    /// The artist's scores with `adapter`, which `name` tells apart from the others.
    pub(super) fn score(
        &mut self,
        client: &SimulatedClient<'_, '_>,
        name: &'static str,
        round: Option<usize>,
        adapter: &Adapter,
    ) -> Result<SimulationScore> {
        let (session, adapters) = (self.work.session, AdapterSet::single(adapter, 1.0));
        let trigger = Trigger::new(&client.trigger).failed("cannot use the trigger")?;
        let images = self.prompts.generate(&mut self.generator, &adapters, Some(&trigger), session)?;
        let generation = self.generator.generation(Some(name), Some(&client.trigger));
        let (prompts, base, towers) = (&self.prompts, &self.base_images, &self.towers);
        let choices = prompts.choices(self.work.base, &client.images);
        let scorer = Scorer { prompts, base, references: &client.images, others: &[], choices, towers };
        let scores = scorer.score(&scorer.evaluation(&images, generation), session)?;
        if let (None, Some(image)) = (round, images.with_trigger.into_iter().next()) {
            self.shown.push(Shown { artist: client.artist.name, adapter: name, image });
        }
        Ok(SimulationScore {
            artist: client.artist.name,
            adapter: name,
            round,
            style: scores.style.map(|style| style.score.mean),
            content: scores.content.map(|content| content.score.mean),
            preservation: scores.preservation.map(|preservation| preservation.score.mean),
            identity: scores.identity.map(|identity| identity.mean),
            kps_no_token: scores.kps_no_token.mean,
        })
    }
}
