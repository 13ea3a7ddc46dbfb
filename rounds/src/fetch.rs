//! What a client takes home: the open round, and what to remember of the federation.

use std::collections::BTreeMap;
use std::path::Path;

use catelier_federation::ClientRound;
use catelier_numerics::atomic;

use crate::error::{Error, Result};
use crate::federation::{Federation, Remembered, Trust};
use crate::place::Place;
use crate::record;

/// Names of the files of a round, `round.json` last: it is written when the others are there.
const FILES: [&str; 3] = ["global.safetensors", "merged.safetensors", "round.json"];

/// The open round, with every signature and every sum checked.
#[derive(Debug)]
pub struct Fetched {
    /// The round, from 1.
    pub round: usize,
    /// Its deadline, in seconds since 1970.
    pub deadline: u64,
    /// The clients that take part.
    pub participants: usize,
    /// By what the client will know the federation again.
    pub remembered: Remembered,
    /// What the round asks for.
    pub client_round: ClientRound,
    files: BTreeMap<String, Vec<u8>>,
    federation: Vec<u8>,
}

impl Fetched {
    /// Names of the files that [`save`](Self::save) may write.
    pub const FILES: [&str; 4] = [record::FEDERATION, FILES[0], FILES[1], FILES[2]];

    /// Writes the round into a folder that is there, as [`ClientRound::load`] reads it, and `federation.json` beside
    /// it.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            atomic::write(folder.join(name), |file| file.write_all(bytes)).map_err(Error::Write)
        };
        write(record::FEDERATION, &self.federation)?;
        FILES
            .iter()
            .filter_map(|name| Some((name, self.files.get(*name)?)))
            .try_for_each(|(name, bytes)| write(name, bytes))
    }
}

/// Fetches the open round.
///
/// # Errors
/// [`Error::NotOpen`], [`Error::Closed`], [`Error::Finished`]; [`Error::NotPinned`] without trust;
/// [`Error::Coordinator`], [`Error::Replaced`], [`Error::RolledBack`] for another federation or an earlier one; those
/// of reading the place.
pub fn fetch(place: &Place, trust: Trust<'_>) -> Result<Fetched> {
    let federation = pinned(place, trust)?;
    let open = &federation.open()?.statement;
    if federation.closing.is_some() {
        return Err(Error::Closed { round: open.round });
    }
    let files = round_files(place, &federation)?;
    let client_round = client_round(&federation, files.clone())?;
    let remembered =
        Remembered { coordinator: federation.coordinator(), digest: federation.record.digest, round: open.round };
    let (round, deadline, participants) = (open.round, open.deadline, open.participants.len());
    Ok(Fetched { round, deadline, participants, remembered, client_round, files, federation: federation.bytes })
}

/// The federation, if something says that it is the one that is meant.
pub(crate) fn pinned(place: &Place, trust: Trust<'_>) -> Result<Federation> {
    let federation = Federation::read(place, trust)?;
    match trust {
        Trust::Nothing => Err(Error::NotPinned { found: federation.coordinator() }),
        Trust::Key(_) | Trust::Remembered(_) => Ok(federation),
    }
}

/// The files of the open round, as the coordinator signed them.
pub(crate) fn round_files(place: &Place, federation: &Federation) -> Result<BTreeMap<String, Vec<u8>>> {
    let open = &federation.open()?.statement;
    let known = open.files.iter().filter(|(name, _)| FILES.contains(&name.as_str()));
    let read = |(name, object): (&String, _)| {
        Ok((name.clone(), place.read_object(&record::in_round(open.round, name), object)?))
    };
    known.map(read).collect()
}

/// The open round as clients get it.
pub(crate) fn client_round(federation: &Federation, files: BTreeMap<String, Vec<u8>>) -> Result<ClientRound> {
    let open = &federation.open()?.statement;
    let folder = record::in_round(open.round, "");
    let round = ClientRound::from_files(Path::new(&folder), files).map_err(Error::federation("reading the round"))?;
    let (expected, found) = (open.round, round.instructions.round);
    let name = || record::in_round(open.round, "round.json");
    if expected != found {
        return Err(Error::Record { name: name(), reason: format!("its round is {found}, expected {expected}") });
    }
    if round.plan != federation.terms().plan {
        return Err(Error::Record { name: name(), reason: "its plan is not that of the federation".into() });
    }
    Ok(round)
}
