//! One artist, attacked: what was drawn, and what losses say of its images.

use std::collections::BTreeMap;

use catelier_adapters::AdapterSet;
use catelier_prompts::Trigger;
use image::RgbImage;

use super::AuditRequest;
use super::attack::{Extrapolated, HandedOut, Knows, Prompts, extrapolations, prompts};
use super::copying::{Compared, Nearness};
use super::measure::{Eyes, Measure};
use super::membership::Probe;
use super::played::{Attacker, Played, Victim};
use crate::error::{Context, Result};
use crate::event::Stage;
use crate::generator::{ImageGenerator, Images};
use crate::session::Session;

/// What an attack works with.
pub(super) struct Room<'a, 's> {
    pub(super) request: &'a AuditRequest,
    pub(super) played: &'a Played,
    pub(super) attacker: &'a Attacker,
    pub(super) handed_out: &'a [HandedOut],
    pub(super) eyes: Eyes<'a>,
    pub(super) generator: ImageGenerator<'a>,
    pub(super) session: &'a Session<'s>,
}

/// An artist that was attacked.
pub(super) struct Attacked {
    pub(super) victim: Victim,
    pub(super) compared: Compared,
    /// What was drawn with each difference of rounds, for each kind of prompts.
    pub(super) drawn: Vec<Drawn>,
    /// What the base drew for the same prompts.
    base: Vec<Drawn>,
    /// For each measure and noise, the nearness of the training images to their copies.
    pub(super) copies: Vec<Vec<Nearness>>,
    /// By round, without the trigger and with it, for each image how much smaller the adapter's loss is than the base's: the
    /// training images, then the held-out ones.
    gains: BTreeMap<usize, [Vec<f64>; 2]>,
}

/// Images that were drawn with one adapter for one kind of prompts.
pub(super) struct Drawn {
    pub(super) early: Option<usize>,
    pub(super) strength: f64,
    needs: Knows,
    pub(super) images: Vec<RgbImage>,
    pub(super) features: Vec<Vec<f32>>,
    nearness: Nearness,
}

impl Room<'_, '_> {
    /// Draws all that the attacker can draw, and computes all losses.
    pub(super) fn attack(&mut self, victim: Victim) -> Result<Attacked> {
        self.session.note(format!("looks for the images of {}", victim.artist));
        let (members, seed) = (victim.members(), self.request.seed);
        let compared = self.request.measure.compared(self.eyes, &members, &victim.held_out)?;
        let tried = |measure: Measure| measure.of_copies(self.eyes, &members, &victim.held_out, seed);
        let copies = Measure::ALL.into_iter().map(tried).collect::<Result<_>>()?;
        let kinds = prompts(&victim, self.request)?;
        let nothing = Extrapolated { early: None, strength: 0.0, adapters: AdapterSet::base() };
        let base = self.draw(&kinds, &nothing, &compared)?;
        let ways = extrapolations(self.played, self.attacker, &victim, self.handed_out, &self.request.strengths)?;
        let mut drawn = Vec::new();
        for way in ways {
            drawn.extend(self.draw(&kinds, &way, &compared)?);
        }
        let gains = self.gains(&victim)?;
        Ok(Attacked { victim, compared, drawn, base, copies, gains })
    }

    fn draw(&mut self, kinds: &[Prompts], way: &Extrapolated, compared: &Compared) -> Result<Vec<Drawn>> {
        let mut all = Vec::new();
        for Prompts { needs, texts, seeds } in kinds {
            let stage = if way.adapters.is_base() { Stage::GenerateBase } else { Stage::Generate };
            let images = Images { prompts: texts, seeds };
            let images = self.generator.generate(stage, images, &way.adapters, self.session)?;
            let features = self.request.measure.features(self.eyes, &images.iter().collect::<Vec<_>>())?;
            let nearness = compared.nearness(&features);
            let (early, strength, needs) = (way.early, way.strength, *needs);
            all.push(Drawn { early, strength, needs, images, features, nearness });
        }
        Ok(all)
    }

    /// How much smaller the loss of every image is with what the attacker makes of each round, than with the base.
    fn gains(&self, victim: &Victim) -> Result<BTreeMap<usize, [Vec<f64>; 2]>> {
        let images: Vec<&RgbImage> = victim.images.iter().chain(victim.held_out.iter().flatten()).collect();
        let probe = Probe::new(self.eyes.base, &images, self.request.draws, self.request.seed)?;
        let [plain, triggered] = captions(victim)?;
        let losses = |adapters: &AdapterSet| -> Result<[Vec<f64>; 2]> {
            let of = |captions: &[String]| probe.losses(captions, adapters, self.session);
            Ok([of(&plain)?, of(&triggered)?])
        };
        let of_base = losses(&AdapterSet::base())?;
        let mut gains = BTreeMap::new();
        for round in 1..=self.played.rounds() {
            let Some(adapter) = self.played.exposed(self.attacker, &victim.artist, round)? else { continue };
            let [plain, triggered] = losses(&AdapterSet::single(&adapter, 1.0))?;
            gains.insert(round, [minus(&of_base[0], &plain), minus(&of_base[1], &triggered)]);
        }
        Ok(gains)
    }
}

/// Captions of the training images and of the held-out ones, without the trigger and with it.
fn captions(victim: &Victim) -> Result<[Vec<String>; 2]> {
    let trigger = Trigger::new(&victim.trigger).failed("cannot use the trigger")?;
    let of_held_out = |(caption, images): (&String, &Vec<RgbImage>)| vec![caption.clone(); images.len()];
    let held_out = victim.captions.iter().zip(&victim.held_out).flat_map(of_held_out);
    let plain: Vec<String> = victim.captions.iter().cloned().chain(held_out).collect();
    let triggered = plain.iter().map(|caption| trigger.insert(caption).caption).collect();
    Ok([plain, triggered])
}

fn minus(left: &[f64], right: &[f64]) -> Vec<f64> {
    left.iter().zip(right).map(|(left, right)| left - right).collect()
}

impl Attacked {
    /// The nearness to all that an attacker draws who was handed these rounds (or none: what the base draws) and knows this, and
    /// the number of images.
    pub(super) fn nearness(&self, rounds: Option<&HandedOut>, knows: Knows) -> Option<(Nearness, usize)> {
        let parts = self.drawn_by(rounds, knows);
        let count = parts.iter().map(|drawn| drawn.images.len()).sum();
        best(&parts).map(|nearness| (nearness, count))
    }

    /// All that such an attacker draws, in order.
    pub(super) fn drawn_by(&self, rounds: Option<&HandedOut>, knows: Knows) -> Vec<&Drawn> {
        let drawn = if rounds.is_some() { &self.drawn } else { &self.base };
        let can = |drawn: &&Drawn| rounds.is_none_or(|rounds| rounds.allows(drawn.early)) && drawn.needs <= knows;
        drawn.iter().filter(can).collect()
    }

    /// The nearness to all that was drawn with one difference of rounds at one strength.
    pub(super) fn at(&self, early: Option<usize>, strength: f64) -> Option<Nearness> {
        let is_it = |drawn: &&Drawn| (drawn.early, drawn.strength) == (early, strength);
        best(&self.drawn.iter().filter(is_it).collect::<Vec<_>>())
    }

    /// Mean gains over these rounds, around the mean of the held-out images: of the training images, and of the held-out ones.
    pub(super) fn gains(&self, rounds: &HandedOut, with_trigger: bool) -> Option<(Vec<f64>, Vec<f64>)> {
        let of_round = |round: &usize| Some(&self.gains.get(round)?[usize::from(with_trigger)]);
        let all: Vec<&Vec<f64>> = rounds.rounds.iter().filter_map(of_round).collect();
        let images = all.first()?.len();
        let mean = |image: usize| all.iter().map(|gains| gains[image]).sum::<f64>() / all.len() as f64;
        let mut members: Vec<f64> = (0..images).map(mean).collect();
        let mut held_out = members.split_off(self.victim.images.len());
        let centre = held_out.iter().sum::<f64>() / held_out.len() as f64;
        members.iter_mut().chain(&mut held_out).for_each(|gain| *gain -= centre);
        Some((members, held_out))
    }
}

fn best(parts: &[&Drawn]) -> Option<Nearness> {
    Nearness::best(&parts.iter().map(|drawn| (&drawn.nearness, drawn.images.len())).collect::<Vec<_>>())
}
