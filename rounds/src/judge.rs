//! What is checked of a contribution: by its client before it is sent, and by the coordinator when the round closes.

use std::fmt;

use catelier_federation::{ClientRound, Contribution, SentContribution};

use crate::error::{Error, Result};
use crate::federation::Federation;
use crate::key::PublicKey;
use crate::members::Members;
use crate::name::{ClientName, cut};
use crate::place::Place;
use crate::record::{self, Accepted, ContributionRecord, LARGEST_CONTRIBUTION_RECORD};
use crate::signed::{self, Signed};

/// Most characters of a reason.
const LONGEST_REASON: usize = 400;

/// Why a contribution cannot be used.
#[derive(Debug)]
pub(crate) struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Refusal {
    /// A reason may quote what a stranger wrote, and goes into a record: a long one is cut.
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(cut(reason.into(), LONGEST_REASON))
    }

    /// An error and its causes in one line. A record's name is that of its client, which is told beside the reason.
    fn of(error: &Error) -> Self {
        match error {
            Error::Record { reason, .. } => Self::new(format!("its record is not usable: {reason}")),
            error => Self::of_chain(error),
        }
    }

    fn of_chain(error: &dyn std::error::Error) -> Self {
        let chain = std::iter::successors(Some(error), |error| error.source());
        Self::new(chain.map(ToString::to_string).collect::<Vec<_>>().join(": "))
    }
}

/// What somebody brought, or why it cannot be used.
type Judged<T> = std::result::Result<T, Refusal>;

/// A contribution that can be used, and what a closing says of it.
#[derive(Debug)]
pub(crate) struct Usable {
    pub(crate) accepted: Accepted,
    pub(crate) contribution: Contribution,
}

/// Judges contributions to the open round.
pub(crate) struct Judge<'a> {
    pub(crate) place: &'a Place,
    pub(crate) federation: &'a Federation,
    pub(crate) members: &'a Members,
    pub(crate) round: &'a ClientRound,
}

impl Judge<'_> {
    /// The contribution of a participant; `None` where there is none yet.
    ///
    /// # Errors
    /// [`Error::Store`]: a place that fails says nothing about a contribution.
    pub(crate) fn contribution(&self, client: &ClientName) -> Result<Option<Judged<Usable>>> {
        let record = match record_of(self.place, self.federation, self.members, client)? {
            None => return Ok(None),
            Some(Err(refusal)) => return Ok(Some(Err(refusal))),
            Some(Ok(record)) => record,
        };
        let tensors = record.statement.tensors;
        if let Err(refusal) = self.size(tensors.bytes) {
            return Ok(Some(Err(refusal)));
        }
        let name = record::tensors(self.federation.round(), client, &tensors.sha256);
        let bytes = match self.place.read_object(&name, &tensors) {
            Ok(bytes) => bytes,
            Err(error @ Error::Store { .. }) => return Err(error),
            Err(error) => return Ok(Some(Err(Refusal::of(&error)))),
        };
        let accepted = Accepted { client: client.clone(), record: record.digest, tensors };
        Ok(Some(self.content(&name, bytes, client).and_then(|(sent, contribution)| {
            match sent.weight.to_string() == record.statement.weight {
                true => Ok(Usable { accepted, contribution }),
                false => Err(Refusal::new(format!(
                    "its weight is {}, and its client signed {}",
                    sent.weight,
                    crate::name::shortened(&record.statement.weight)
                ))),
            }
        })))
    }

    /// Refuses a size above that of the terms, before anything is read.
    pub(crate) fn size(&self, found: u64) -> Judged<()> {
        let limit = self.federation.terms().most_bytes;
        match found <= limit {
            true => Ok(()),
            false => Err(Refusal::new(format!("it has {found} bytes, expected at most {limit}"))),
        }
    }

    /// The content of a contribution's file.
    pub(crate) fn content(
        &self,
        name: &str,
        bytes: Vec<u8>,
        client: &ClientName,
    ) -> Judged<(SentContribution, Contribution)> {
        let sent = SentContribution::from_bytes(name, bytes).map_err(|error| Refusal::of_chain(&error))?;
        if sent.client != client.as_str() {
            let found = crate::name::shortened(&sent.client);
            return Err(Refusal::new(format!("its file is of the client `{found}`, expected `{client}`")));
        }
        let expected = self.round.instructions.round;
        if sent.round != expected {
            return Err(Refusal::new(format!("it is for round {}, expected {expected}", sent.round)));
        }
        let ClientRound { plan, instructions, global } = self.round;
        let base = self.federation.terms().base.as_deref();
        match plan.arriving(instructions, &sent, global.as_ref(), base) {
            Err(error) => Err(Refusal::of_chain(&error)),
            Ok(Err(problems)) => {
                Err(Refusal::new(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))
            }
            Ok(Ok(contribution)) => Ok((sent, contribution)),
        }
    }
}

/// The signed record of a participant's contribution; `None` where there is none yet.
pub(crate) fn record_of(
    place: &Place,
    federation: &Federation,
    members: &Members,
    client: &ClientName,
) -> Result<Option<Judged<Signed<ContributionRecord>>>> {
    let name = record::contribution(federation.round(), client);
    let bytes = match place.read(&name, LARGEST_CONTRIBUTION_RECORD) {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => bytes,
        Err(error @ Error::Store { .. }) => return Err(error),
        Err(error) => return Ok(Some(Err(Refusal::of(&error)))),
    };
    let key = members.get(client).ok_or_else(|| Refusal::new(format!("`{client}` is no member any more")));
    Ok(Some(key.and_then(|key| checked(&name, &bytes, federation, client, *key))))
}

fn checked(
    name: &str,
    bytes: &[u8],
    federation: &Federation,
    client: &ClientName,
    key: PublicKey,
) -> Judged<Signed<ContributionRecord>> {
    let record: Signed<ContributionRecord> = signed::read(name, bytes)
        .and_then(|record: Signed<ContributionRecord>| record.by(key, name))
        .map_err(|error| Refusal::of(&error))?;
    let ContributionRecord { federation: of, round, client: by, .. } = &record.statement;
    let expect = |what: &str, expected: &str, found: &str| match expected == found {
        true => Ok(()),
        false => Err(Refusal::new(format!(
            "`{name}` was signed for {what} `{}`, expected `{expected}`",
            crate::name::shortened(found)
        ))),
    };
    expect("federation", federation.id(), of)?;
    expect("round", &federation.round().to_string(), &round.to_string())?;
    expect("client", client.as_str(), by.as_str())?;
    Ok(record)
}
