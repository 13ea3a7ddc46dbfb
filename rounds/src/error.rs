//! Errors of rounds.

use std::io;
use std::path::PathBuf;

use crate::key::PublicKey;
use crate::name::ClientName;

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a step of a round was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An address that names no place.
    #[error("`{address}` is no place for a federation: {reason}")]
    Place {
        /// The address.
        address: String,
        /// The reason.
        reason: String,
    },
    /// The folder or the bucket failed.
    #[error("{what} `{name}` in `{address}` failed")]
    Store {
        /// What was done.
        what: &'static str,
        /// The object.
        name: String,
        /// The place.
        address: String,
        /// The cause.
        #[source]
        source: object_store::Error,
    },
    /// A place without a federation.
    #[error("there is no federation in `{address}`")]
    NoFederation {
        /// The place.
        address: String,
    },
    /// A place with a federation, where there should be none.
    #[error("there is a federation in `{address}` already")]
    FederationExists {
        /// The place.
        address: String,
    },
    /// An object that a record names, or that others build on, is gone.
    #[error("`{name}` is missing from the place")]
    Missing {
        /// The object.
        name: String,
    },
    /// An object is not what a record says.
    #[error("`{name}` was changed: {reason}")]
    Changed {
        /// The object.
        name: String,
        /// What was expected and found.
        reason: String,
    },
    /// An object is larger than it may be.
    #[error("`{name}` has {found} bytes, expected at most {limit}")]
    TooLarge {
        /// The object.
        name: String,
        /// Most bytes.
        limit: u64,
        /// Its bytes.
        found: u64,
    },
    /// Another object has the name of one that was to be written.
    #[error("`{name}` is in the place already, with another content")]
    Taken {
        /// The object.
        name: String,
    },
    /// A record that is damaged, or not what it should be.
    #[error("`{name}` is not usable: {reason}")]
    Record {
        /// The record.
        name: String,
        /// The reason.
        reason: String,
    },
    /// A name that no client may have.
    #[error("the name `{name}` is not usable: expected 1 to 64 characters of a-z, 0-9, - and _")]
    Name {
        /// The name.
        name: String,
    },
    /// A text that is no public key.
    #[error("`{text}` is no public key: expected `ed25519:` and 64 hexadecimal digits")]
    PublicKey {
        /// The text.
        text: String,
    },
    /// A file that is no private key.
    #[error("`{}` is no usable key: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A private key that others can read.
    #[error("the key `{}` may be opened by others: its mode is {mode:03o}, expected 600", path.display())]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file of a key could not be read or written.
    #[error("the key `{}` could not be read or written", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The key of the federation's coordinator is not known.
    #[error("nothing says whose federation this is: its coordinator says to be {found}")]
    NotPinned {
        /// The key in the place.
        found: PublicKey,
    },
    /// The federation is somebody else's.
    #[error("the federation's coordinator is {found}, expected {expected}")]
    Coordinator {
        /// The key that was expected.
        expected: PublicKey,
        /// The key in the place.
        found: PublicKey,
    },
    /// The place holds another federation than before.
    #[error("the place holds another federation than before: `federation.json` was replaced")]
    Replaced,
    /// The place has fewer rounds than before.
    #[error("the place holds {found} rounds, and round {expected} was there before")]
    RolledBack {
        /// The latest round that was there.
        expected: usize,
        /// Rounds that are there.
        found: usize,
    },
    /// A term out of its range.
    #[error("{what}: expected {expected}, found {found}")]
    Terms {
        /// The term.
        what: &'static str,
        /// The rule.
        expected: String,
        /// The value.
        found: String,
    },
    /// A name that is a member's already.
    #[error("`{name}` is a member already, with the key {key}")]
    MemberExists {
        /// The name.
        name: ClientName,
        /// Its key.
        key: PublicKey,
    },
    /// A key that has a name already.
    #[error("the key {key} is that of the member `{name}`")]
    KeyExists {
        /// The member.
        name: ClientName,
        /// The key.
        key: PublicKey,
    },
    /// A name that no member has.
    #[error("`{name}` is no member")]
    NoSuchMember {
        /// The name.
        name: ClientName,
    },
    /// A key that no member has.
    #[error("the key {key} is no member's")]
    NoMember {
        /// The key.
        key: PublicKey,
    },
    /// Somebody else changed the members meanwhile.
    #[error("the members were changed by somebody else at the same time")]
    MembersChanged,
    /// Too few participants for a quorum.
    #[error("round {round} has {found} participants, and its quorum is {quorum}")]
    TooFewMembers {
        /// The round.
        round: usize,
        /// Participants.
        found: usize,
        /// The quorum.
        quorum: usize,
    },
    /// All rounds are over.
    #[error("all {rounds} rounds are over")]
    Finished {
        /// Rounds of the federation.
        rounds: usize,
    },
    /// No round is open.
    #[error("round {round} is not open yet")]
    NotOpen {
        /// The next round.
        round: usize,
    },
    /// The contributions of a round are fixed.
    #[error("round {round} has closed: its contributions are fixed")]
    Closed {
        /// The round.
        round: usize,
    },
    /// A member who does not take part.
    #[error("`{name}` does not take part in round {round}")]
    NotParticipant {
        /// The member.
        name: ClientName,
        /// The round.
        round: usize,
    },
    /// Another contribution of the client is there.
    #[error("`{client}` has sent another contribution to round {round}")]
    Submitted {
        /// The client.
        client: ClientName,
        /// The round.
        round: usize,
    },
    /// A contribution that the round would refuse.
    #[error("round {round} would refuse this contribution of `{client}`: {reason}")]
    Refused {
        /// The client.
        client: ClientName,
        /// The round.
        round: usize,
        /// The reason.
        reason: String,
    },
    /// A round cannot be closed yet.
    #[error("round {round} can be closed in {} or when all have sent: {} missing", spoken(*seconds), listed(missing))]
    TooEarly {
        /// The round.
        round: usize,
        /// Seconds to the deadline.
        seconds: u64,
        /// Who is missing.
        missing: Vec<ClientName>,
    },
    /// A round has too few contributions that can be used.
    #[error("round {round} has {found} usable contributions, and its quorum is {quorum}{}", details(refused, missing))]
    Quorum {
        /// The round.
        round: usize,
        /// Contributions that can be used.
        found: usize,
        /// The quorum.
        quorum: usize,
        /// Those that cannot, with the reasons.
        refused: Vec<(String, String)>,
        /// Who is missing.
        missing: Vec<ClientName>,
    },
    /// There is no result yet.
    #[error("no round has closed yet")]
    NoResult,
    /// The federation's own rules.
    #[error("{what} failed")]
    Federation {
        /// What was done.
        what: String,
        /// The cause.
        #[source]
        source: catelier_federation::Error,
    },
    /// A file in the client's own folder could not be written.
    #[error("writing the round failed")]
    Write(#[source] catelier_numerics::Error),
}

impl Error {
    pub(crate) fn federation(what: impl Into<String>) -> impl FnOnce(catelier_federation::Error) -> Self {
        let what = what.into();
        move |source| Self::Federation { what, source }
    }

    /// Whether the place failed, where another try may succeed; otherwise somebody must change something.
    pub fn is_failure(&self) -> bool {
        use object_store::Error as Store;
        match self {
            Self::Store { source, .. } => !matches!(
                source,
                Store::PermissionDenied { .. } | Store::Unauthenticated { .. } | Store::NotFound { .. }
            ),
            Self::Write(_) => true,
            _ => false,
        }
    }

    /// Advice on what to do next, where there is any.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Place { .. } => "name a folder that is there, or s3://BUCKET/PREFIX with the variables of AWS",
            Self::Store { .. } if self.is_failure() => "try again; a repeated step does no harm",
            Self::Store { .. } => "ask the owner of the place for access",
            Self::NoFederation { .. } => "create one, or name the place of one",
            Self::FederationExists { .. } => "choose another place",
            Self::Missing { .. } | Self::Changed { .. } => {
                "somebody who can write in the place deleted or changed it: restore it from a copy"
            }
            Self::TooLarge { .. } | Self::Record { .. } | Self::Taken { .. } => {
                "somebody who can write in the place put it there: delete it, or restore it from a copy"
            }
            Self::KeyMode { path, .. } => return Some(format!("chmod 600 {}", path.display())),
            Self::Key { .. } => "make a key with `catelier federate round key`",
            Self::KeyFile { .. } => "a key is never overwritten: choose another file",
            Self::NotPinned { .. } => "ask the coordinator for the public key, and give it with `--coordinator`",
            Self::Coordinator { .. } | Self::Replaced | Self::RolledBack { .. } => {
                "ask the coordinator before you send anything"
            }
            Self::MemberExists { .. } => "remove the member before it gets another key",
            Self::KeyExists { .. } => "every member has a key of its own",
            Self::NoSuchMember { .. } | Self::NoMember { .. } => "ask the coordinator to add the member",
            Self::MembersChanged => "look at the members, and try again",
            Self::TooFewMembers { .. } => "add members",
            Self::NotOpen { .. } => "wait until the coordinator opens it",
            Self::Closed { .. } => "wait for the next round",
            Self::NotParticipant { .. } => "wait for the next round, in which others are drawn",
            Self::Submitted { .. } => "a client sends one contribution to a round",
            Self::Refused { .. } => "fetch the round again and train from it",
            Self::TooEarly { .. } => "wait, or close with `--now`",
            Self::Quorum { .. } => "wait for more contributions; the round stays open",
            Self::Finished { .. } => "take the result",
            Self::Federation { source, .. } => return source.hint(),
            Self::Write(source) => return source.hint(),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// Names that a message spells out.
const SPELLED_OUT: usize = 8;

fn listed(names: &[ClientName]) -> String {
    let shown: Vec<String> = names.iter().take(SPELLED_OUT).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(SPELLED_OUT) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn details(refused: &[(String, String)], missing: &[ClientName]) -> String {
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!("missing: {}", listed(missing)));
    }
    parts.extend(refused.iter().take(SPELLED_OUT).map(|(name, reason)| format!("refused: `{name}`, {reason}")));
    parts.iter().map(|part| format!("; {part}")).collect()
}

/// A time as a person says it, in its two largest units.
pub fn spoken(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |large: u64, unit, small: u64, part| match small {
        0 => format!("{large} {unit}"),
        small => format!("{large} {unit} {small} {part}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min"),
        3600..86400 => two(hours, "h", minutes % 60, "min"),
        _ => two(days, "d", hours % 24, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_two_units() {
        let cases = [(0, "0 s"), (59, "59 s"), (119, "1 min"), (3600, "1 h"), (5400, "1 h 30 min"), (172_800, "2 d")];
        for (seconds, said) in cases.into_iter().chain([(86_400 + 3600, "1 d 1 h")]) {
            assert_eq!(spoken(seconds), said);
        }
    }
}
