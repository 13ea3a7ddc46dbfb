//! The opening of a round.

use std::collections::BTreeMap;

use catelier_federation::ClientRound;

use crate::error::{Error, Result};
use crate::federation::{Federation, Trust};
use crate::key::PrivateKey;
use crate::name::ClientName;
use crate::place::{Place, Put};
use crate::record::{self, Object, OpenRecord};
use crate::signed;

/// A round that is open.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// The round, from 1.
    pub round: usize,
    /// Its deadline, in seconds since 1970.
    pub deadline: u64,
    /// The clients that take part.
    pub participants: Vec<ClientName>,
    /// Whether it was opened just now; otherwise it was open already.
    pub is_new: bool,
}

/// Opens the next round for the members, or those of them that the plan draws. `now` is the coordinator's clock, in
/// seconds since 1970. A round that is open already stays as it is.
///
/// # Errors
/// [`Error::Finished`], [`Error::TooFewMembers`], and those of reading the place.
pub fn open(place: &Place, key: &PrivateKey, now: u64) -> Result<Opened> {
    let federation = Federation::read(place, Trust::Key(key.public()))?;
    if let Some(open) = &federation.open {
        return Ok(Opened::of(&open.statement, false));
    }
    let (round, terms) = (federation.round(), federation.terms());
    if federation.is_finished() {
        return Err(Error::Finished { rounds: terms.plan.rounds });
    }
    let record = OpenRecord {
        federation: federation.id().to_owned(),
        round,
        previous: federation.last_digest(),
        members: federation.members.len(),
        opened: now,
        deadline: now.saturating_add(terms.deadline_seconds),
        participants: participants(&federation)?,
        files: upload_round(place, &federation)?,
    };
    match place.create(&record::open(round), signed::sign(&record, key)?)? {
        Put::New => Ok(Opened::of(&record, true)),
        // Another coordinator was faster.
        Put::Exists => {
            let federation = Federation::read(place, Trust::Key(key.public()))?;
            Ok(Opened::of(&federation.open()?.statement, false))
        }
    }
}

fn participants(federation: &Federation) -> Result<Vec<ClientName>> {
    let (round, quorum) = (federation.round(), federation.terms().quorum);
    let names: Vec<ClientName> = federation.current_members().into_keys().collect();
    let chosen = match names.len() {
        0 => Vec::new(),
        count => federation.terms().plan.participation.of_round(round, count),
    };
    let participants: Vec<ClientName> = chosen.into_iter().map(|index| names[index].clone()).collect();
    match participants.len() {
        found if found < quorum => Err(Error::TooFewMembers { round, found, quorum }),
        _ => Ok(participants),
    }
}

/// Writes the files that clients fetch.
fn upload_round(place: &Place, federation: &Federation) -> Result<BTreeMap<String, Object>> {
    let (round, plan) = (federation.round(), federation.terms().plan.clone());
    let state = federation.state(place)?;
    let instructions = plan.configure(round, &state).map_err(Error::federation("preparing the round"))?;
    let client_round = ClientRound { plan, instructions, global: state.global().cloned() };
    let mut objects = BTreeMap::new();
    for (name, bytes) in client_round.to_files().map_err(Error::federation("saving the round"))? {
        objects.insert(name.to_owned(), Object::of(&bytes));
        place.create_same(&record::in_round(round, name), bytes)?;
    }
    Ok(objects)
}

impl Opened {
    fn of(record: &OpenRecord, is_new: bool) -> Self {
        let OpenRecord { round, deadline, participants, .. } = record.clone();
        Self { round, deadline, participants, is_new }
    }
}
