//! The rounds of a method: clients train, the server aggregates, and the model is measured.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use catelier_features::Feature;
use catelier_federation::{Memory, ModelReply, NamedTensors, Strategy};
use catelier_numerics::noise::{Noise, Stream};
use rayon::prelude::*;

use super::bank::Bank;
use super::local::{Batch, Training};
use super::measures::{Measures, measure};
use super::method::{FedStyleParts, Method};
use super::rows::{Prepared, Rows, Seen};
use super::{CLASSIFIER, CurvePoint, Outcome, PROJECTION, Settings, Trained, head};
use crate::error::{Error, Result};
use crate::losses::{
    alignment, contrastive, cross_entropy, model_contrast, prototype_cross_entropy, prototype_distance, proximal,
    unit_rows,
};
use crate::model::{StyleHead, project};
use crate::vectors::{mean, unit};

/// MOON's temperature, as in its paper.
const MODEL_TEMPERATURE: f64 = 0.5;

/// Most public works whose directions are negatives in a batch.
const PUBLIC_NEGATIVES: usize = 64;

const BOTH: &[&str] = &[PROJECTION, CLASSIFIER];
const BODY: &[&str] = &[PROJECTION];
const HEAD: &[&str] = &[CLASSIFIER];

/// A method at work.
pub(super) struct Rounds<'r> {
    method: Method,
    prepared: &'r Prepared,
    settings: &'r Settings,
    global: NamedTensors,
    /// What clients keep at home: their models, their classifiers, or their models of the last round.
    home: Vec<NamedTensors>,
    memory: Memory,
    bank: Bank,
    public: Option<Tensor>,
    curve: Vec<CurvePoint>,
    refused: Vec<String>,
}

impl<'r> Rounds<'r> {
    pub(super) fn new(method: Method, prepared: &'r Prepared, settings: &'r Settings) -> Result<Self> {
        let (channels, clients) = (prepared.standardisation.width(), prepared.clients.len());
        let width = settings.width.unwrap_or(channels);
        let mut global =
            NamedTensors::from([(PROJECTION.to_owned(), StyleHead::start(channels, width, settings.seed)?)]);
        if !matches!(method, Method::Fedstyle(_)) {
            global.insert(CLASSIFIER.to_owned(), random_classifier(clients, width, settings.seed)?);
        }
        let mut rounds = Self {
            method,
            prepared,
            settings,
            home: vec![global.clone(); clients],
            global,
            memory: Memory::new(),
            bank: Bank::new(&prepared.names, prepared.public_artists, width),
            public: public_negatives(prepared)?,
            curve: Vec::new(),
            refused: Vec::new(),
        };
        if matches!(method, Method::Fedstyle(_)) {
            let start = vec![rounds.global.clone(); clients];
            rounds.take_prototypes(0, &start, 0.0)?;
        }
        Ok(rounds)
    }

    pub(super) fn run(mut self, observe: &mut dyn FnMut(usize) -> ControlFlow<()>) -> Result<Trained> {
        for round in 1..=self.settings.rounds {
            self.round(round)?;
            let every = self.settings.measure_every;
            if every > 0 && round % every == 0 {
                let accuracy = self.measures()?.accuracy;
                self.curve.push(CurvePoint { round, accuracy });
            }
            if observe(round).is_break() {
                return Err(Error::Cancelled);
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Result<Trained> {
        let mut before_tuning = None;
        if self.is_tuned() {
            before_tuning = Some(self.measures()?);
            let tuned = self.each_client(|rounds, client| {
                rounds.train(rounds.settings.rounds + 1, client, &rounds.global, BOTH, rounds.settings.tuning_epochs)
            });
            self.home = tuned?;
        }
        let measures = match self.is_tuned() {
            true => measure(&self.seen_by_each(&self.home)?, self.prepared)?,
            false => self.measures()?,
        };
        let head = match self.method.is_personal() {
            true => None,
            false => Some(head(&self.prepared.standardisation, &self.global)?),
        };
        let sent = self.sent();
        let Self { method, curve, refused, .. } = self;
        Ok(Trained { outcome: Outcome { method, measures, before_tuning, curve, sent, refused }, head })
    }

    fn is_tuned(&self) -> bool {
        matches!(self.method, Method::FedavgTuned | Method::Fedbabu)
    }

    /// Numbers that a client sends in a round.
    fn sent(&self) -> usize {
        let of = |names: &[&str]| {
            names.iter().filter_map(|name| self.global.get(*name)).map(Tensor::elem_count).sum::<usize>()
        };
        let width = self.global[PROJECTION].dims()[0];
        match self.method {
            Method::Tower | Method::Local | Method::Centralised => 0,
            Method::Fedproto => width,
            Method::Fedstyle(_) => of(BODY) + width,
            _ => of(self.shared()),
        }
    }

    /// The tensors that clients share.
    fn shared(&self) -> &'static [&'static str] {
        match self.method {
            Method::Tower | Method::Local | Method::Fedproto | Method::Centralised => &[],
            Method::Fedrep | Method::Fedbabu | Method::Fedstyle(_) => BODY,
            Method::Fedavg | Method::Fedprox | Method::Moon | Method::FedavgTuned | Method::Ewwa => BOTH,
        }
    }

    fn round(&mut self, round: usize) -> Result<()> {
        if self.method == Method::Centralised {
            let epochs = self.settings.local_epochs;
            let training = self.training(&self.prepared.all, BOTH, round, 0);
            self.global = training.epochs(&self.global, epochs, &|batch, model| self.classify(batch, model))?;
            return Ok(());
        }
        let models = self.each_client(|rounds, client| rounds.train_at(round, client))?;
        if !self.shared().is_empty() {
            self.aggregate(round, &models)?;
        }
        match self.method {
            Method::Fedstyle(parts) => {
                self.take_prototypes(round, &models, self.settings.momentum)?;
                if parts.public {
                    self.calibrate(round, parts)?;
                }
            }
            Method::Fedproto => self.take_prototypes(round, &models, 0.0)?,
            _ => {}
        }
        self.home = models;
        Ok(())
    }

    /// What `work` gives for every client, in their order.
    fn each_client(&self, work: impl Fn(&Self, usize) -> Result<NamedTensors> + Sync) -> Result<Vec<NamedTensors>> {
        (0..self.prepared.clients.len()).into_par_iter().map(|client| work(self, client)).collect()
    }

    /// A client's model after its part of a round.
    fn train_at(&self, round: usize, client: usize) -> Result<NamedTensors> {
        let epochs = self.settings.local_epochs;
        match self.method {
            Method::Local | Method::Fedproto => self.train(round, client, &self.home[client], BOTH, epochs),
            Method::Fedbabu | Method::Fedstyle(_) => self.train(round, client, &self.global, BODY, epochs),
            Method::Fedrep => {
                let mut start = self.global.clone();
                start.insert(CLASSIFIER.to_owned(), self.home[client][CLASSIFIER].clone());
                let with_head = self.train(round, client, &start, HEAD, epochs)?;
                self.train(round, client, &with_head, BODY, epochs)
            }
            _ => self.train(round, client, &self.global, BOTH, epochs),
        }
    }

    fn train(
        &self,
        round: usize,
        client: usize,
        start: &NamedTensors,
        trained: &[&'static str],
        epochs: usize,
    ) -> Result<NamedTensors> {
        let training = self.training(&self.prepared.clients[client], trained, round, client);
        match self.method {
            Method::Fedprox => training.epochs(start, epochs, &|batch, model| {
                let held = |name: &str| proximal(&model[name], &self.global[name], self.settings.proximal);
                self.classify(batch, model)? + (held(PROJECTION)? + held(CLASSIFIER)?)?
            }),
            Method::Moon => training.epochs(start, epochs, &|batch, model| {
                let own = project(&batch.rows, &model[PROJECTION])?;
                let [global, last] =
                    [&self.global, &self.home[client]].map(|other| project(&batch.rows, &other[PROJECTION]));
                let contrast = model_contrast(&own, &global?, &last?, MODEL_TEMPERATURE)?;
                self.classify(batch, model)? + (contrast * self.settings.model_contrast)?
            }),
            Method::Fedproto => {
                let bank = self.bank.tensor()?;
                training.epochs(start, epochs, &|batch, model| {
                    let own = project(&batch.rows, &model[PROJECTION])?;
                    let distance = prototype_distance(&own, &rows_of(&bank, &batch.labels)?)?;
                    self.classify(batch, model)? + (distance * self.settings.prototype_distance)?
                })
            }
            Method::Fedstyle(parts) => {
                let bank = self.bank.tensor()?;
                training.epochs(start, epochs, &|batch, model| self.fedstyle(parts, &bank, batch, model))
            }
            _ => training.epochs(start, epochs, &|batch, model| self.classify(batch, model)),
        }
    }

    fn training<'t>(&'t self, rows: &'t Rows, trained: &'t [&'static str], round: usize, place: usize) -> Training<'t> {
        Training { settings: self.settings, rows, trained, place: (round as u64, place as u64) }
    }

    /// Cross-entropy under the model's classifier.
    fn classify(&self, batch: &Batch, model: &NamedTensors) -> CandleResult<Tensor> {
        let directions = project(&batch.rows, &model[PROJECTION])?;
        cross_entropy(&(directions.matmul(&model[CLASSIFIER].t()?)? / self.settings.temperature)?, &batch.labels)
    }

    /// FedStyle's loss of a client, reconstructed.
    fn fedstyle(
        &self,
        parts: FedStyleParts,
        bank: &Tensor,
        batch: &Batch,
        model: &NamedTensors,
    ) -> CandleResult<Tensor> {
        let Settings { temperature, alignment: align, contrast, .. } = *self.settings;
        let directions = project(&batch.rows, &model[PROJECTION])?;
        let mut loss = (directions.sum_all()? * 0.0)?;
        if parts.classifier {
            loss = (loss + prototype_cross_entropy(&directions, bank, &batch.labels, temperature)?)?;
        }
        if parts.alignment {
            loss = (loss + (alignment(&directions, &rows_of(bank, &batch.labels)?)? * align)?)?;
        }
        if parts.contrast {
            let negatives = self.negatives(parts, bank, batch.labels[0], model)?;
            loss = (loss + (contrastive(&directions, &batch.labels, &negatives, temperature)? * contrast)?)?;
        }
        Ok(loss)
    }

    /// The prototypes of other styles, and the directions of public works.
    fn negatives(&self, parts: FedStyleParts, bank: &Tensor, own: u32, model: &NamedTensors) -> CandleResult<Tensor> {
        let others: Vec<u32> = (0..self.known(parts) as u32).filter(|label| *label != own).collect();
        let others = rows_of(bank, &others)?;
        match self.public.as_ref().filter(|_| parts.public) {
            Some(public) => Tensor::cat(&[others, project(public, &model[PROJECTION])?], 0),
            None => Ok(others),
        }
    }

    /// Number of prototypes in the bank.
    fn known(&self, parts: FedStyleParts) -> usize {
        self.prepared.clients.len() + if parts.public { self.prepared.public_artists } else { 0 }
    }

    fn aggregate(&mut self, round: usize, models: &[NamedTensors]) -> Result<()> {
        let shared = self.shared();
        let only = |model: &NamedTensors| -> NamedTensors {
            model
                .iter()
                .filter(|(name, _)| shared.contains(&name.as_str()))
                .map(|(name, tensor)| (name.clone(), tensor.clone()))
                .collect()
        };
        let reply = |(client, model): (usize, &NamedTensors)| {
            let weight = self.prepared.clients[client].works.len() as f64;
            (self.prepared.names[client].clone(), ModelReply { tensors: only(model), weight })
        };
        let replies: BTreeMap<String, ModelReply> = models.iter().enumerate().map(reply).collect();
        let strategy = if self.method == Method::Ewwa { Strategy::ewwa() } else { self.settings.strategy.clone() };
        let aggregated = strategy.step_model(round, &only(&self.global), &replies, &self.memory);
        let (global, memory) = aggregated.map_err(|source| Error::Federation { round, source })?;
        self.global.extend(global);
        self.memory = memory;
        Ok(())
    }

    /// Every client sends its prototype by its own model; the server computes those of public artists by the global one.
    fn take_prototypes(&mut self, round: usize, models: &[NamedTensors], momentum: f64) -> Result<()> {
        for (client, model) in models.iter().enumerate() {
            let directions = directions(&self.prepared.clients[client].as_they_are()?, model)?;
            let prototype =
                unit(&mean(directions.iter().map(Feature::as_slice)), &format!("`{}`", self.prepared.names[client]))?;
            if let Err(error) = self.bank.take(client, &prototype, momentum) {
                self.refused.push(format!("round {round}: {error}"));
            }
        }
        self.take_public_prototypes()
    }

    fn take_public_prototypes(&mut self) -> Result<()> {
        let Some(public) = &self.prepared.public else { return Ok(()) };
        let directions = directions(&public.as_they_are()?, &self.global)?;
        for artist in 0..self.prepared.public_artists {
            let label = (self.prepared.clients.len() + artist) as u32;
            let own = public.works.iter().zip(&directions).filter(|(work, _)| work.label == label);
            let prototype = unit(&mean(own.map(|(_, direction)| direction.as_slice())), "a public artist")?;
            self.bank.set_public(artist, prototype);
        }
        Ok(())
    }

    /// The server's steps on the public set, held near the aggregated model.
    fn calibrate(&mut self, round: usize, parts: FedStyleParts) -> Result<()> {
        let Some(public) = &self.prepared.public else { return Ok(()) };
        let (bank, aggregated) = (self.bank.tensor()?, self.global.clone());
        let clients = self.prepared.clients.len() as u32;
        let server = self.training(public, BODY, round, self.prepared.clients.len());
        let loss = |batch: &Batch, model: &NamedTensors| {
            let directions = project(&batch.rows, &model[PROJECTION])?;
            let strangers = rows_of(&bank, &(0..clients).collect::<Vec<_>>())?;
            let temperature = self.settings.temperature;
            let told = prototype_cross_entropy(&directions, &bank, &batch.labels, temperature)?;
            let contrast = contrastive(&directions, &batch.labels, &strangers, temperature)?;
            let held = proximal(&model[PROJECTION], &aggregated[PROJECTION], self.settings.proximal)?;
            let contrast = if parts.contrast { (contrast * self.settings.contrast)? } else { (contrast * 0.0)? };
            (told + contrast)? + held
        };
        let calibrated = server.some_steps(&self.global, self.settings.calibration_steps, &loss)?;
        self.global = calibrated;
        self.take_public_prototypes()
    }

    /// The measures of the models as they are.
    fn measures(&self) -> Result<Measures> {
        let seen = match self.method {
            Method::Local | Method::Fedproto => self.seen_by_each(&self.home)?,
            _ => vec![self.seen(&self.global)?],
        };
        measure(&seen, self.prepared)
    }

    fn seen_by_each(&self, models: &[NamedTensors]) -> Result<Vec<Seen>> {
        models.iter().map(|model| self.seen(model)).collect()
    }

    fn seen(&self, model: &NamedTensors) -> Result<Seen> {
        let by = |rows: &Tensor| project(rows, &model[PROJECTION]).map_err(Error::tensor("directions"));
        Ok(Seen { queries: by(&self.prepared.queries)?, works: by(&self.prepared.all.as_they_are()?)? })
    }
}

fn rows_of(bank: &Tensor, labels: &[u32]) -> CandleResult<Tensor> {
    bank.index_select(&Tensor::new(labels, bank.device())?, 0)
}

fn directions(rows: &Tensor, model: &NamedTensors) -> Result<Vec<Feature>> {
    project(rows, &model[PROJECTION]).and_then(|directions| directions.to_vec2()).map_err(Error::tensor("directions"))
}

/// Rows of length 1 in random directions: the classifier that all clients start from.
fn random_classifier(clients: usize, width: usize, seed: u64) -> Result<Tensor> {
    let values = Noise::new(seed).normal(Stream("style.classifier"), 0, 0, (clients, width), &Device::Cpu);
    let values = values.map_err(Error::numerics("drawing a classifier"))?;
    unit_rows(&values).and_then(|rows| rows.to_dtype(DType::F32)).map_err(Error::tensor("a classifier"))
}

/// The public works that are negatives in every batch, taken evenly from all of them.
fn public_negatives(prepared: &Prepared) -> Result<Option<Tensor>> {
    let Some(public) = &prepared.public else { return Ok(None) };
    let every = public.works.len().div_ceil(PUBLIC_NEGATIVES).max(1);
    let numbers: Vec<u32> = public.works.iter().step_by(every).map(|work| work.first).collect();
    public.chosen(&numbers).map(Some)
}
