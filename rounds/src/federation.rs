//! A federation as its place shows it, with every signature checked.

use std::collections::BTreeMap;

use catelier_federation::{RoundPlan, State};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::key::{PrivateKey, PublicKey};
use crate::name::ClientName;
use crate::place::Place;
use crate::record::{
    self, ClosedRecord, ClosingRecord, FederationRecord, LARGEST_RECORD, MembersRecord, OpenRecord, Terms,
};
use crate::signed::{self, Signed, Statement};

/// By what a reader knows that the federation is the one that is meant.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// The coordinator's public key, from the coordinator.
    Key(PublicKey),
    /// What an earlier round left in the client's own folder.
    Remembered(&'a Remembered),
    /// Nothing: only to look at the place.
    Nothing,
}

/// What a client's folder remembers of the federation.
#[derive(Debug, Clone)]
pub struct Remembered {
    pub(crate) coordinator: PublicKey,
    pub(crate) digest: Digest,
    /// The latest round that was fetched.
    pub(crate) round: usize,
}

impl Remembered {
    /// From the `federation.json` of the folder, and the latest round that was fetched into it.
    ///
    /// # Errors
    /// [`Error::Record`] for a file that is damaged.
    pub fn from_record(name: &str, bytes: &[u8], round: usize) -> Result<Self> {
        let record = own::<FederationRecord>(name, bytes)?;
        let coordinator = record.statement.coordinator;
        let digest = record.by(coordinator, name)?.digest;
        Ok(Self { coordinator, digest, round })
    }

    /// The public key of the coordinator.
    pub fn coordinator(&self) -> PublicKey {
        self.coordinator
    }
}

fn own<T: Statement>(name: &str, bytes: &[u8]) -> Result<Signed<T>> {
    signed::read(name, bytes)
}

/// A federation as its place shows it.
#[derive(Debug)]
pub(crate) struct Federation {
    pub(crate) record: Signed<FederationRecord>,
    /// The bytes of `federation.json`.
    pub(crate) bytes: Vec<u8>,
    /// All versions of the members, the first at 0.
    pub(crate) members: Vec<Signed<MembersRecord>>,
    /// The rounds that have closed, the first at 0.
    pub(crate) closed: Vec<Signed<ClosedRecord>>,
    /// The round after them, where it is open.
    pub(crate) open: Option<Signed<OpenRecord>>,
    /// The contributions of that round, where they are fixed.
    pub(crate) closing: Option<Signed<ClosingRecord>>,
}

impl Federation {
    /// Reads all records that say where the federation is, and checks that each was signed by the coordinator, is of
    /// this federation and follows the one before.
    pub(crate) fn read(place: &Place, trust: Trust<'_>) -> Result<Self> {
        let name = record::FEDERATION;
        let address = || place.address().to_owned();
        let bytes = place.read(name, LARGEST_RECORD)?.ok_or_else(|| Error::NoFederation { address: address() })?;
        let record = own::<FederationRecord>(name, &bytes)?;
        let record = trusted(record, trust)?;
        record.statement.terms.validate()?;
        let (members, closed) = (Vec::new(), Vec::new());
        let mut federation = Self { record, bytes, members, closed, open: None, closing: None };
        federation.read_members(place)?;
        federation.read_rounds(place)?;
        if let Trust::Remembered(remembered) = trust {
            let found = federation.closed.len() + usize::from(federation.open.is_some());
            if found < remembered.round {
                return Err(Error::RolledBack { expected: remembered.round, found });
            }
        }
        Ok(federation)
    }

    fn read_members(&mut self, place: &Place) -> Result<()> {
        loop {
            let version = self.members.len() + 1;
            let name = record::members(version);
            let Some(signed) = self.record_of::<MembersRecord>(place, &name)? else { return Ok(()) };
            let previous = self.members.last().map_or(self.record.digest, |before| before.digest);
            let MembersRecord { federation, version: stated, previous: follows, .. } = &signed.statement;
            self.expect(&name, "federation", &self.record.statement.id, federation)?;
            self.expect(&name, "version", &version, stated)?;
            self.expect(&name, "sum of the version before", &previous, follows)?;
            self.members.push(signed);
        }
    }

    fn read_rounds(&mut self, place: &Place) -> Result<()> {
        while self.closed.len() < self.terms().plan.rounds {
            let round = self.closed.len() + 1;
            let name = record::closed(round);
            let Some(signed) = self.record_of::<ClosedRecord>(place, &name)? else { break };
            let ClosedRecord { federation, round: stated, previous, .. } = &signed.statement;
            self.expect_round(&name, federation, *stated)?;
            self.expect(&name, "sum of the round before", &self.last_digest(), previous)?;
            self.closed.push(signed);
        }
        if !self.is_finished() {
            self.read_open(place)?;
            self.read_closing(place)?;
        }
        Ok(())
    }

    fn read_open(&mut self, place: &Place) -> Result<()> {
        let name = record::open(self.round());
        let Some(signed) = self.record_of::<OpenRecord>(place, &name)? else { return Ok(()) };
        let OpenRecord { federation, round, previous, members, .. } = &signed.statement;
        self.expect_round(&name, federation, *round)?;
        self.expect(&name, "sum of the round before", &self.last_digest(), previous)?;
        if *members > self.members.len() {
            return Err(Error::Missing { name: record::members(self.members.len() + 1) });
        }
        // A round that another one follows has closed, whatever is left of it.
        if place.has(&record::open(self.round() + 1))? {
            return Err(Error::Missing { name: record::closed(self.round()) });
        }
        self.open = Some(signed);
        Ok(())
    }

    fn read_closing(&mut self, place: &Place) -> Result<()> {
        let (round, name) = (self.round(), record::closing(self.round()));
        let Some(signed) = self.record_of::<ClosingRecord>(place, &name)? else { return Ok(()) };
        let open = self.open.as_ref().ok_or_else(|| Error::Missing { name: record::open(round) })?;
        let ClosingRecord { federation, round: stated, open: of, members, .. } = &signed.statement;
        self.expect_round(&name, federation, *stated)?;
        self.expect(&name, "sum of `open.json`", &open.digest, of)?;
        if *members > self.members.len() {
            return Err(Error::Missing { name: record::members(self.members.len() + 1) });
        }
        self.closing = Some(signed);
        Ok(())
    }

    /// A record that the coordinator must have signed; `None` where there is none.
    fn record_of<T: Statement>(&self, place: &Place, name: &str) -> Result<Option<Signed<T>>> {
        let Some(bytes) = place.read(name, LARGEST_RECORD)? else { return Ok(None) };
        Ok(Some(own(name, &bytes)?.by(self.coordinator(), name)?))
    }

    fn expect_round(&self, name: &str, federation: &String, round: usize) -> Result<()> {
        self.expect(name, "federation", &self.record.statement.id, federation)?;
        self.expect(name, "round", &self.round(), &round)
    }

    fn expect<T: PartialEq + std::fmt::Display>(&self, name: &str, what: &str, expected: &T, found: &T) -> Result<()> {
        match expected == found {
            true => Ok(()),
            false => Err(Error::Record {
                name: name.to_owned(),
                reason: format!("its {what} is `{found}`, expected `{expected}`"),
            }),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.record.statement.id
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.record.statement.terms
    }

    pub(crate) fn coordinator(&self) -> PublicKey {
        self.record.statement.coordinator
    }

    /// The round after those that have closed.
    pub(crate) fn round(&self) -> usize {
        self.closed.len() + 1
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.closed.len() >= self.terms().plan.rounds
    }

    /// The open round.
    pub(crate) fn open(&self) -> Result<&Signed<OpenRecord>> {
        let rounds = self.terms().plan.rounds;
        match &self.open {
            Some(open) => Ok(open),
            None if self.is_finished() => Err(Error::Finished { rounds }),
            None => Err(Error::NotOpen { round: self.round() }),
        }
    }

    /// What the next round follows.
    pub(crate) fn last_digest(&self) -> Digest {
        self.closed.last().map_or(self.record.digest, |closed| closed.digest)
    }

    /// The members of a version; of version 0 there are none.
    pub(crate) fn members_of(&self, version: usize) -> BTreeMap<ClientName, PublicKey> {
        let record = version.checked_sub(1).and_then(|index| self.members.get(index));
        record.map(|record| record.statement.members.clone()).unwrap_or_default()
    }

    /// The members now.
    pub(crate) fn current_members(&self) -> BTreeMap<ClientName, PublicKey> {
        self.members_of(self.members.len())
    }

    /// The state before the next round.
    pub(crate) fn state(&self, place: &Place) -> Result<State> {
        let object = match self.closed.last() {
            Some(closed) => Some(closed.statement.state),
            None => self.record.statement.start,
        };
        let Some(object) = object else { return Ok(State::new()) };
        let name = record::state(self.closed.len());
        let bytes = place.read_object(&name, &object)?;
        let state = State::from_bytes(&name, bytes).map_err(Error::federation("reading the state"))?;
        self.expect(&name, "number of rounds", &self.closed.len(), &state.completed())?;
        Ok(state)
    }

    /// The plan as the coordinator follows it: noise on the server comes from the coordinator's key, so that nobody
    /// else can take it away again, and every coordinator with this key adds the same.
    pub(crate) fn plan_of(&self, key: &PrivateKey) -> RoundPlan {
        let mut plan = self.terms().plan.clone();
        if let Some(privacy) = &mut plan.privacy {
            privacy.seed = key.number(&format!("noise {}", self.id()));
        }
        plan
    }
}

fn trusted(record: Signed<FederationRecord>, trust: Trust<'_>) -> Result<Signed<FederationRecord>> {
    let found = record.statement.coordinator;
    let record = record.by(found, record::FEDERATION)?;
    match trust {
        Trust::Key(expected) if expected != found => Err(Error::Coordinator { expected, found }),
        Trust::Remembered(remembered) if remembered.coordinator != found => {
            Err(Error::Coordinator { expected: remembered.coordinator, found })
        }
        Trust::Remembered(remembered) if remembered.digest != record.digest => Err(Error::Replaced),
        Trust::Key(_) | Trust::Remembered(_) | Trust::Nothing => Ok(record),
    }
}
