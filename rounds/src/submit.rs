//! The upload of a contribution.

use crate::error::{Error, Result};
use crate::federation::{Federation, Trust};
use crate::fetch::{client_round, pinned, round_files};
use crate::judge::{Judge, Refusal};
use crate::key::PrivateKey;
use crate::name::ClientName;
use crate::place::{Place, Put};
use crate::record::{self, ClosingRecord, ContributionRecord, LARGEST_CONTRIBUTION_RECORD, LARGEST_RECORD, Object};
use crate::signed;

/// A contribution that is in the place.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// The round, from 1.
    pub round: usize,
    /// The client.
    pub client: ClientName,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether it was sent just now; otherwise it was there already.
    pub is_new: bool,
}

/// Sends the file of a contribution to the open round, after all checks that the coordinator will make of it alone.
/// The tensors are written first; the signed record makes them a contribution. A repeated call with the same file does
/// nothing more.
///
/// # Errors
/// [`Error::NoMember`], [`Error::NotParticipant`], [`Error::Refused`], [`Error::Submitted`] for another file than
/// before, [`Error::Closed`], and those of [`fetch`](crate::fetch()).
pub fn submit(place: &Place, trust: Trust<'_>, key: &PrivateKey, file: Vec<u8>) -> Result<Submitted> {
    let federation = pinned(place, trust)?;
    let (round, client) = participant(&federation, key)?;
    let (record, object) = (prepared(place, &federation, key, &client, &file)?, Object::of(&file));
    let submitted = |is_new| Submitted { round, client: client.clone(), bytes: object.bytes, is_new };
    let name = record::contribution(round, &client);
    if is_there(place, &name, &record)? {
        return Ok(submitted(false));
    }
    refuse_closed(place, &federation)?;
    place.create_same(&record::tensors(round, &client, &object.sha256), file)?;
    let put = place.create(&name, record.clone())?;
    if put == Put::Exists && !is_there(place, &name, &record)? {
        return Err(Error::Submitted { client, round });
    }
    // What came after the closing is in nobody's mean, and its client should know.
    refuse_left_out(place, &federation, &client)?;
    Ok(submitted(put == Put::New))
}

/// The open round and the name of the key's owner, who takes part in it.
fn participant(federation: &Federation, key: &PrivateKey) -> Result<(usize, ClientName)> {
    let open = &federation.open()?.statement;
    let public = key.public();
    let member = federation.current_members().into_iter().find(|(_, known)| *known == public);
    let (name, _) = member.ok_or(Error::NoMember { key: public })?;
    match open.participants.contains(&name) {
        true => Ok((open.round, name)),
        false => Err(Error::NotParticipant { name, round: open.round }),
    }
}

/// The bytes of the record, after all checks.
fn prepared(
    place: &Place,
    federation: &Federation,
    key: &PrivateKey,
    client: &ClientName,
    file: &[u8],
) -> Result<Vec<u8>> {
    let round = client_round(federation, round_files(place, federation)?)?;
    let members = federation.current_members();
    let judge = Judge { place, federation, members: &members, round: &round };
    let refused = |refusal: Refusal| Error::Refused {
        client: client.clone(),
        round: federation.round(),
        reason: refusal.to_string(),
    };
    judge.size(file.len() as u64).map_err(refused)?;
    let (sent, _) = judge.content("the contribution", file.to_vec(), client).map_err(refused)?;
    let record = ContributionRecord {
        federation: federation.id().to_owned(),
        round: federation.round(),
        client: client.clone(),
        tensors: Object::of(file),
        weight: sent.weight.to_string(),
    };
    signed::sign(&record, key)
}

/// Whether this very record is there.
///
/// # Errors
/// [`Error::Submitted`] for another record of the same client, [`Error::Record`] for what is none.
fn is_there(place: &Place, name: &str, expected: &[u8]) -> Result<bool> {
    let Some(found) = place.read(name, LARGEST_CONTRIBUTION_RECORD)? else { return Ok(false) };
    let [found, expected] = [&found[..], expected].map(|bytes| signed::read::<ContributionRecord>(name, bytes));
    let (found, expected) = (found?, expected?);
    if found.digest == expected.digest && found.signer == expected.signer {
        return Ok(true);
    }
    let ContributionRecord { client, round, .. } = expected.statement;
    found.by(expected.signer, name)?;
    Err(Error::Submitted { client, round })
}

fn refuse_closed(place: &Place, federation: &Federation) -> Result<()> {
    let round = federation.round();
    match federation.closing.is_some() || place.has(&record::closing(round))? {
        true => Err(Error::Closed { round }),
        false => Ok(()),
    }
}

/// Refuses a contribution that a closing, made at the same time, does not have.
fn refuse_left_out(place: &Place, federation: &Federation, client: &ClientName) -> Result<()> {
    let (round, name) = (federation.round(), record::closing(federation.round()));
    let Some(bytes) = place.read(&name, LARGEST_RECORD)? else { return Ok(()) };
    let closing = signed::read::<ClosingRecord>(&name, &bytes)?.by(federation.coordinator(), &name)?;
    match closing.statement.accepted.iter().any(|accepted| accepted.client == *client) {
        true => Ok(()),
        false => Err(Error::Closed { round }),
    }
}
