//! How a federation stands.

use serde::Serialize;

use crate::close::strangers;
use crate::digest::Digest;
use crate::error::Result;
use crate::federation::{Federation, Trust};
use crate::judge::record_of;
use crate::key::PublicKey;
use crate::members::Members;
use crate::name::ClientName;
use crate::place::Place;
use crate::record::Terms;

/// How a federation stands.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The federation's id.
    pub federation: String,
    /// The coordinator's public key.
    pub coordinator: PublicKey,
    /// Whether something says that this is the federation that is meant.
    pub is_trusted: bool,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// What its rounds are like.
    pub terms: Terms,
    /// The members.
    pub members: Members,
    /// Rounds that have closed.
    pub completed: usize,
    /// SHA-256 of the state after them.
    pub state: Option<Digest>,
    /// The round that is open.
    pub open: Option<OpenRound>,
}

/// The round that is open.
#[derive(Debug, Clone, Serialize)]
pub struct OpenRound {
    /// The round, from 1.
    pub round: usize,
    /// When it was opened, in seconds since 1970.
    pub opened: u64,
    /// Its deadline, in seconds since 1970.
    pub deadline: u64,
    /// Whether its contributions are fixed, and only the result is not there yet.
    pub is_closing: bool,
    /// The clients that take part.
    pub participants: Vec<Participant>,
    /// Files that are no participant's, with the reasons.
    pub strangers: Vec<(String, String)>,
}

/// A client of the open round.
#[derive(Debug, Clone, Serialize)]
pub struct Participant {
    /// Its name.
    pub client: ClientName,
    /// What it has sent.
    #[serde(flatten)]
    pub sent: Sent,
}

/// What a client has sent; its tensors are looked at when the round closes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "sent", rename_all = "snake_case")]
pub enum Sent {
    /// Nothing yet.
    Nothing,
    /// A contribution with a signature that holds.
    Contribution {
        /// Its weight, as the client signed it.
        weight: String,
        /// Bytes of its file.
        bytes: u64,
    },
    /// Something that the round will refuse.
    Refused {
        /// The reason.
        reason: String,
    },
}

impl OpenRound {
    /// Contributions with signatures that hold.
    pub fn contributions(&self) -> usize {
        self.participants.iter().filter(|one| matches!(one.sent, Sent::Contribution { .. })).count()
    }
}

/// How the federation of a place stands; without trust, as the place says.
///
/// # Errors
/// Those of reading the place.
pub fn status(place: &Place, trust: Trust<'_>) -> Result<Status> {
    let federation = Federation::read(place, trust)?;
    let open = open_round(place, &federation)?;
    Ok(Status {
        federation: federation.id().to_owned(),
        coordinator: federation.coordinator(),
        is_trusted: !matches!(trust, Trust::Nothing),
        created: federation.record.statement.created,
        terms: federation.terms().clone(),
        members: federation.current_members(),
        completed: federation.closed.len(),
        state: federation.closed.last().map(|closed| closed.statement.state.sha256),
        open,
    })
}

fn open_round(place: &Place, federation: &Federation) -> Result<Option<OpenRound>> {
    let Some(open) = federation.open.as_ref().map(|open| &open.statement) else { return Ok(None) };
    let members = federation.current_members();
    let sent = |client: &ClientName| -> Result<Participant> {
        let sent = match record_of(place, federation, &members, client)? {
            None => Sent::Nothing,
            Some(Err(refusal)) => Sent::Refused { reason: refusal.to_string() },
            Some(Ok(record)) => {
                Sent::Contribution { weight: record.statement.weight, bytes: record.statement.tensors.bytes }
            }
        };
        Ok(Participant { client: client.clone(), sent })
    };
    Ok(Some(OpenRound {
        round: open.round,
        opened: open.opened,
        deadline: open.deadline,
        is_closing: federation.closing.is_some(),
        participants: open.participants.iter().map(sent).collect::<Result<_>>()?,
        strangers: strangers(place, open.round, &open.participants)?,
    }))
}
