//! The members of a federation. Every change is a new version, signed by the coordinator, that names the one before.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::federation::{Federation, Trust};
use crate::key::{PrivateKey, PublicKey};
use crate::name::ClientName;
use crate::place::{Place, Put};
use crate::record::{self, MembersRecord};
use crate::signed;

/// Names and keys of the members.
pub type Members = BTreeMap<ClientName, PublicKey>;

/// The members now.
///
/// # Errors
/// Those of reading the place.
pub fn list(place: &Place, trust: Trust<'_>) -> Result<Members> {
    Ok(Federation::read(place, trust)?.current_members())
}

/// Adds members; those that are members already, with the same key, stay. They take part from the next round on.
///
/// # Errors
/// [`Error::MemberExists`], [`Error::KeyExists`], [`Error::MembersChanged`], and those of reading the place.
pub fn add(place: &Place, key: &PrivateKey, new: &[(ClientName, PublicKey)]) -> Result<Members> {
    change(place, key, |members| {
        let mut names: BTreeMap<PublicKey, ClientName> =
            members.iter().map(|(name, key)| (*key, name.clone())).collect();
        for (name, public) in new {
            match members.get(name) {
                Some(known) if known == public => continue,
                Some(known) => return Err(Error::MemberExists { name: name.clone(), key: *known }),
                None => {}
            }
            if let Some(name) = names.insert(*public, name.clone()) {
                return Err(Error::KeyExists { name, key: *public });
            }
            members.insert(name.clone(), *public);
        }
        Ok(())
    })
}

/// Removes members. What they have sent to a round that is still open is refused when it closes.
///
/// # Errors
/// [`Error::NoSuchMember`], [`Error::MembersChanged`], and those of reading the place.
pub fn remove(place: &Place, key: &PrivateKey, names: &[ClientName]) -> Result<Members> {
    change(place, key, |members| {
        for name in names {
            members.remove(name).ok_or_else(|| Error::NoSuchMember { name: name.clone() })?;
        }
        Ok(())
    })
}

fn change(place: &Place, key: &PrivateKey, change: impl FnOnce(&mut Members) -> Result<()>) -> Result<Members> {
    let federation = Federation::read(place, Trust::Key(key.public()))?;
    let before = federation.current_members();
    let mut members = before.clone();
    change(&mut members)?;
    if members == before {
        return Ok(members);
    }
    let version = federation.members.len() + 1;
    let previous = federation.members.last().map_or(federation.record.digest, |record| record.digest);
    let record = MembersRecord { federation: federation.id().to_owned(), version, previous, members: members.clone() };
    match place.create(&record::members(version), signed::sign(&record, key)?)? {
        Put::New => Ok(members),
        Put::Exists => Err(Error::MembersChanged),
    }
}
