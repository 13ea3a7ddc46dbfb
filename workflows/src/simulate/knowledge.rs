//! Rounds in which knowledge travels instead of adapters, so that adapters may be of any kind, rank and targets.
//!
//! All artists have the same public images. After its training, every artist tells what its adapter predicts for them
//! beyond the base, under captions with its own trigger; the mean is distilled into the global adapter, and in the next
//! round every artist trains on its own images and towards what the others know.
//!
//! **Source** after FedMEKT, arXiv 2307.13214; residuals of noise predictions in place of embeddings are our own.

use std::ops::Range;
use std::path::Path;

use catelier_adapters::{Adapter, AdapterSet};
use catelier_federation::{Client, ClientReport, Memory, RoundObserver, RoundReport, State};
use catelier_gallery::export::Source;
use catelier_pipelines::training::{Knowledge, Proxies, StartingPoint};

use super::client::SimulatedClient;
use super::{RoundLog, Work};
use crate::drawn;
use crate::error::{Context, Error, Result};
use crate::local_training::LocalTraining;
use crate::train::TrainingData;

/// The folder of the public images.
pub(super) const PUBLIC: &str = "public";

/// The runs of the global adapter.
pub(super) const DISTILLED: &str = "distilled";

/// The public images under every artist's trigger, in the order of the artists.
pub(super) struct Public<'a, 's> {
    work: Work<'a, 's>,
    pub(super) data: TrainingData,
    proxies: Proxies,
}

/// What the artists of a round told.
#[derive(Default)]
struct Told {
    /// Each artist's knowledge, weighed by its number of images.
    parts: Vec<(Knowledge, f64)>,
    reports: Vec<ClientReport>,
    failed: Vec<(String, String)>,
}

impl<'a, 's> Public<'a, 's> {
    /// Draws the images and encodes them with each trigger.
    pub(super) fn new(work: Work<'a, 's>, clients: &[SimulatedClient<'_, '_>]) -> Result<Self> {
        let Work { settings, out, session, .. } = work;
        let count = settings.public_images;
        // Another seed than that of the artists, so that nobody trains on the scenes that all have.
        let images = drawn::draw(out, Path::new(PUBLIC), Source::House, count, settings.seed.wrapping_add(1), session)?;
        let with_trigger = |client: &SimulatedClient<'_, '_>| {
            let settings = work.training(&images, &client.trigger, settings.local_steps, 0)?;
            TrainingData::load(work.base, &settings, session)
        };
        let parts = clients.iter().map(with_trigger).collect::<Result<Vec<_>>>()?;
        let proxies = Proxies { samples: count * clients.len(), draws: settings.public_draws, seed: settings.seed };
        Ok(Self { work, data: TrainingData::together(parts.iter()), proxies })
    }

    /// Plays the rounds that `state` has not seen, and saves it after each.
    pub(super) fn play(&self, clients: &[SimulatedClient<'_, '_>], mut state: State) -> Result<State> {
        let mut log = RoundLog { work: self.work, outcome: Ok(()) };
        while state.completed() < self.work.settings.rounds {
            let round = state.completed() + 1;
            let told = self.collect(round, clients, state.global(), &mut log)?;
            let (global, report) = self.distil(round, told, state.global())?;
            state.advance(global, Memory::new(), report.clone());
            let _ = log.round_done(&report, &state);
            std::mem::replace(&mut log.outcome, Ok(()))?;
        }
        Ok(state)
    }

    /// Lets every artist train, also towards what the global adapter knows, and tell what it knows then.
    fn collect(
        &self,
        round: usize,
        clients: &[SimulatedClient<'_, '_>],
        global: Option<&Adapter>,
        log: &mut RoundLog<'_, '_>,
    ) -> Result<Told> {
        let of_all = global.map(|global| self.known(0..self.proxies.samples, global)).transpose()?;
        let mut told = Told::default();
        for (place, client) in clients.iter().enumerate() {
            log.client_starts(round, client.name());
            match self.told_by(client, place, round, of_all.as_ref()) {
                Ok((part, report)) => {
                    told.parts.push((part, client.images.len() as f64));
                    told.reports.push(report);
                }
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(reason) if self.work.settings.goes_on() => {
                    log.client_failed(round, client.name(), &reason);
                    told.failed.push((client.name().to_owned(), reason.to_string()));
                }
                Err(reason) => return Err(reason),
            }
        }
        Ok(told)
    }

    /// What one artist knows of the public images under its trigger, after its training.
    fn told_by(
        &self,
        client: &SimulatedClient<'_, '_>,
        place: usize,
        round: usize,
        of_all: Option<&Knowledge>,
    ) -> Result<(Knowledge, ClientReport)> {
        let adapter = client.learn(round, self, of_all)?;
        let count = self.work.settings.public_images;
        let part = self.known(place * count..(place + 1) * count, &adapter)?;
        if !part.is_finite().failed("cannot check what an artist told")? {
            return Err(Error::user("what it told is not finite", "leave it out, or ask it to train again"));
        }
        let (client, weight) = (client.name().to_owned(), client.images.len() as f64);
        Ok((part, ClientReport { client, weight, norm: norm(&adapter)? }))
    }

    /// The global adapter, trained towards the mean of what was told.
    fn distil(&self, round: usize, told: Told, before: Option<&Adapter>) -> Result<(Adapter, RoundReport)> {
        let Work { base, settings, out, session } = self.work;
        let parts: Vec<(&Knowledge, f64)> = told.parts.iter().map(|(part, weight)| (part, *weight)).collect();
        let mean = Knowledge::mean(&parts).failed("cannot average what the artists told")?;
        let training = self.work.training(out.path(), DISTILLED, settings.distil_steps, round as u64)?;
        let local = LocalTraining { base, data: &self.data, towards: Some(&mean), session };
        let start = before.map(|global| StartingPoint::from(global.clone()));
        let folder = out.path().join(DISTILLED).join(format!("round-{round}"));
        let global = local.run(&training, start.as_ref(), &folder)?.adapter;
        let missed = mean.relative_distance(&self.known(0..self.proxies.samples, &global)?);
        let missed = missed.failed("cannot measure what was distilled")? as f32;
        let (clients, failed) = (told.reports.clone(), told.failed.clone());
        let norm = norm(&global)?;
        let report = RoundReport {
            round,
            clients,
            failed,
            distance: missed,
            relative_distance: missed,
            norm,
            change: norm,
            spread: 0.0,
            bytes_sent: told.parts.iter().map(|(part, _)| part.byte_count() as u64).sum(),
        };
        Ok((global, report))
    }

    fn known(&self, samples: Range<usize>, adapter: &Adapter) -> Result<Knowledge> {
        let Work { base, session, .. } = self.work;
        let adapters = AdapterSet::single(adapter, 1.0);
        let (dataset, proxies) = (self.data.encoded(), self.proxies);
        Knowledge::of(&base.model, dataset, proxies, samples, &adapters, &|| session.is_cancelled())
            .failed("cannot ask an adapter what it knows")
    }
}

/// Norm of the low-rank part of an update.
fn norm(adapter: &Adapter) -> Result<f32> {
    Ok(adapter.low_rank().delta_norm().failed("cannot measure an adapter")? as f32)
}
