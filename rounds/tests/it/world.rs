//! A small federation: a place, a coordinator and three artists who bend the global adapter towards a style of their
//! own.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Device;
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors, sum};
use catelier_federation::{ClientRound, Contribution, Role, RoundPlan, SentContribution, Start, State};
use catelier_numerics::hex;
use catelier_numerics::noise::{Noise, Stream};
use catelier_rounds::{
    ClientName, Closed, Error, Fetched, Opened, Place, PrivateKey, Result, Submitted, Terms, Trust, close, create,
    fetch, members, open, submit,
};
use futures_executor::block_on;
use futures_util::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

pub(crate) const CLIENTS: [&str; 3] = ["ada", "ben", "cy"];

/// The first moment of a federation, and the time between its rounds.
pub(crate) const START: u64 = 1_800_000_000;
pub(crate) const DAY: u64 = 86_400;

const MODULES: [(&str, usize, usize); 2] =
    [("unet.mid_block.attentions.0.proj_in", 5, 4), ("unet.up_blocks.0.attentions.0.proj_in", 3, 2)];

/// An adapter drawn from a seed.
pub(crate) fn adapter(rank: usize, seed: u64) -> Adapter {
    let module = |(index, (path, inputs, outputs)): (usize, &(&str, usize, usize))| {
        let draw = |sample, shape: (usize, usize)| {
            Noise::new(seed).normal(Stream("artists"), index as u64, sample, shape, &Device::Cpu).unwrap()
        };
        let factors = LoraFactors::new(draw(0, (rank, *inputs)), draw(1, (*outputs, rank)), rank as f64).unwrap();
        ((*path).to_owned(), factors)
    };
    MODULES.iter().enumerate().map(module).collect()
}

pub(crate) fn key(name: &str) -> PrivateKey {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    PrivateKey::from_bytes(&bytes)
}

pub(crate) fn name(name: &str) -> ClientName {
    name.parse().unwrap()
}

pub(crate) fn terms(strategy: &str, rounds: usize) -> Terms {
    Terms {
        plan: RoundPlan { strategy: strategy.parse().unwrap(), rounds, ..RoundPlan::default() },
        quorum: 2,
        deadline_seconds: DAY / 2,
        most_bytes: 100_000,
        base: Some("v2-0123".into()),
    }
}

/// A federation in a place, as its people see it.
pub(crate) struct World {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) place: Place,
    pub(crate) coordinator: PrivateKey,
}

impl World {
    /// A federation of three in memory.
    pub(crate) fn new(strategy: &str, rounds: usize) -> Self {
        Self::with_terms(Arc::new(InMemory::new()), terms(strategy, rounds), [7; 16])
    }

    pub(crate) fn with_terms(store: Arc<dyn ObjectStore>, terms: Terms, id: [u8; 16]) -> Self {
        let world = Self::at(store);
        create(&world.place, &world.coordinator, id, terms, Some(adapter(2, 9)), START).unwrap();
        let new = CLIENTS.map(|client| (name(client), key(client).public()));
        members::add(&world.place, &world.coordinator, &new).unwrap();
        world
    }

    /// The view of somebody who comes to a store.
    pub(crate) fn at(store: Arc<dyn ObjectStore>) -> Self {
        Self { place: Place::of_store("memory", store.clone()), store, coordinator: key("coordinator") }
    }

    pub(crate) fn trust(&self) -> Trust<'static> {
        Trust::Key(self.coordinator.public())
    }

    pub(crate) fn open(&self, round: usize) -> Result<Opened> {
        open(&self.place, &self.coordinator, START + round as u64 * DAY)
    }

    pub(crate) fn fetch(&self) -> Result<Fetched> {
        fetch(&self.place, self.trust())
    }

    /// A client's day: fetch, train, send.
    pub(crate) fn take_part(&self, client: &str) -> Result<Submitted> {
        let round = self.fetch()?.client_round;
        self.submit(client, sent(&round, client).to_bytes().unwrap())
    }

    pub(crate) fn submit(&self, client: &str, file: Vec<u8>) -> Result<Submitted> {
        submit(&self.place, self.trust(), &key(client), file)
    }

    pub(crate) fn close(&self, round: usize) -> Result<Closed> {
        close(&self.place, &self.coordinator, START + round as u64 * DAY + 60, false)
    }

    pub(crate) fn close_late(&self, round: usize) -> Result<Closed> {
        close(&self.place, &self.coordinator, START + (round as u64 + 1) * DAY, false)
    }

    /// A whole round of all.
    pub(crate) fn play(&self, round: usize) -> Closed {
        self.open(round).unwrap();
        CLIENTS.iter().for_each(|client| drop(self.take_part(client).unwrap()));
        self.close(round).unwrap()
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        block_on(async { self.store.get(&Path::from(name)).await.unwrap().bytes().await.unwrap() }).to_vec()
    }

    /// Writes past all rules, as somebody with access to the place can.
    pub(crate) fn write(&self, name: &str, bytes: Vec<u8>) {
        block_on(self.store.put(&Path::from(name), PutPayload::from(bytes))).unwrap();
    }

    pub(crate) fn delete(&self, name: &str) {
        block_on(self.store.delete(&Path::from(name))).unwrap();
    }

    /// Every object by name.
    pub(crate) fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let all: Vec<_> = block_on(self.store.list(None).try_collect()).unwrap();
        all.into_iter().map(|meta| (meta.location.to_string(), self.read(meta.location.as_ref()))).collect()
    }
}

/// Every bit of an adapter.
pub(crate) fn bits(adapter: &Adapter) -> Vec<u8> {
    State::starting_from(adapter.clone()).to_bytes().unwrap()
}

/// What a client sends: half of the way from the global adapter to its own style, or that style where it starts afresh.
/// Only shared tensors move.
pub(crate) fn sent(round: &ClientRound, client: &str) -> SentContribution {
    let seed = CLIENTS.iter().position(|known| *known == client).unwrap_or(5) as u64;
    let own = adapter(2, 100 * round.instructions.round as u64 + seed);
    let global = round.global.as_ref().unwrap();
    let shared = round.instructions.roles.names(global, Role::Shared);
    let mix = |(module, update): (&str, &LayerUpdate)| {
        let own = own.get(module).unwrap();
        let update = update.try_map(|name, tensor| match shared.contains(&format!("{module}.{name}")) {
            true => (tensor * 0.5)? + (own.get(name).unwrap() * 0.5)?,
            false => Ok(tensor.clone()),
        });
        (module.to_owned(), update.unwrap())
    };
    let trained = match round.instructions.start {
        Start::Global => global.iter().map(mix).collect(),
        Start::Fresh => own.clone(),
    };
    let contribution = Contribution::from_examples(client, trained, 10 + seed as usize).on_base("v2-0123");
    round.leaving(contribution, 5).unwrap().unwrap()
}

/// Norm of the difference of two adapters.
pub(crate) fn distance(left: &Adapter, right: &Adapter) -> f64 {
    sum(&[(&left.low_rank(), 1.0), (&right.low_rank(), -1.0)]).unwrap().delta_norm().unwrap()
}

/// The text of an error, its causes and its hint.
#[track_caller]
pub(crate) fn told<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error: Error = result.unwrap_err();
    let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let text: Vec<String> = chain.map(ToString::to_string).collect();
    format!("{} | {}", text.join(": "), error.hint().unwrap_or_default())
}

/// The record of a contribution with any statement, as `rounds/README.md` says that it is signed.
pub(crate) fn signed(statement: &str, signer: &str) -> Vec<u8> {
    use ed25519_dalek::Signer;
    let mut secret = [0; 32];
    secret[..signer.len()].copy_from_slice(signer.as_bytes());
    let bytes = [b"catelier rounds 1\0contribution\0", statement.as_bytes()].concat();
    let signature = hex::encode(ed25519_dalek::SigningKey::from_bytes(&secret).sign(&bytes).to_bytes());
    let record = serde_json::json!({
        "kind": "contribution", "statement": statement, "key": key(signer).public(), "signature": signature,
    });
    record.to_string().into_bytes()
}

/// Eight hands add a member each at the same time: nobody is lost.
pub(crate) fn join_at_once(place: impl Fn() -> Place + Sync) {
    let names: Vec<String> = (0..8).map(|number| format!("new-{number}")).collect();
    let join = |client: &String| {
        let new = [(name(client), key(client).public())];
        while let Err(error) = members::add(&place(), &key("coordinator"), &new) {
            assert!(matches!(error, Error::MembersChanged), "{error}");
        }
    };
    let join = &join;
    std::thread::scope(|scope| names.iter().for_each(|client| drop(scope.spawn(move || join(client)))));
    let found = members::list(&place(), Trust::Key(key("coordinator").public())).unwrap();
    assert!(names.iter().all(|client| found.contains_key(&name(client))), "{found:?}");
}
