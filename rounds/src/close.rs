//! The closing of a round.
//!
//! `closing.json` is the decision: it fixes the contributions by name and sum, and whoever writes it first decides.
//! From then on everything follows from what is in the place, so that every coordinator with the key computes the same
//! bytes, however often and wherever it was stopped before.

use std::collections::BTreeSet;

use catelier_federation::{ClientRound, Contribution, Contributions, InMemory, RoundReport, State};

use crate::error::{Error, Result};
use crate::federation::{Federation, Trust};
use crate::fetch::{client_round, round_files};
use crate::judge::{Judge, Refusal, Usable};
use crate::key::PrivateKey;
use crate::name::{ClientName, shortened};
use crate::place::{Place, Put};
use crate::record::{self, Accepted, ClosedRecord, ClosingRecord, Object};
use crate::signed::{self, Signed};

/// Names in the folder of contributions that are looked at, beside those of the participants.
const MOST_STRANGERS: usize = 1000;

/// Strangers that a closing names.
const NAMED_STRANGERS: usize = 20;

/// A round that is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Closed {
    /// The round, from 1.
    pub round: usize,
    /// Rounds of the federation.
    pub rounds: usize,
    /// What was refused, each with the reason.
    pub refused: Vec<(String, String)>,
    /// Participants who sent nothing.
    pub missing: Vec<ClientName>,
    /// Who contributed, and what became of it.
    pub report: RoundReport,
    /// Whether the contributions were fixed by this call; otherwise another one had fixed them.
    pub decided_here: bool,
}

/// Closes the open round: when its deadline has passed, when all participants have sent what can be used, or `early`.
/// `now` is the coordinator's clock, in seconds since 1970; what is there when the round closes counts, whenever it
/// came.
///
/// # Errors
/// [`Error::NotOpen`], [`Error::TooEarly`]; [`Error::Quorum`] with all that was refused, and the round stays open;
/// [`Error::Federation`] if the rule cannot use these contributions, and the round stays open; [`Error::Missing`] and
/// [`Error::Changed`] if what was fixed is not there any more; those of reading the place.
pub fn close(place: &Place, key: &PrivateKey, now: u64, early: bool) -> Result<Closed> {
    let federation = Federation::read(place, Trust::Key(key.public()))?;
    federation.open()?;
    let close = Close { place, key, federation: &federation };
    match &federation.closing {
        Some(closing) => close.follow(closing, false),
        None => close.decide(now, early),
    }
}

struct Close<'a> {
    place: &'a Place,
    key: &'a PrivateKey,
    federation: &'a Federation,
}

/// What participants have brought.
#[derive(Default)]
struct Collected {
    usable: Vec<Usable>,
    refused: Vec<(String, String)>,
    missing: Vec<ClientName>,
}

impl Close<'_> {
    /// Fixes the contributions, unless another coordinator does so first.
    fn decide(&self, now: u64, early: bool) -> Result<Closed> {
        let open = self.federation.open()?;
        let collected = self.sifted(self.collect()?)?;
        self.refuse_early(&collected, now, early)?;
        self.refuse_few(&collected)?;
        let Collected { usable, mut refused, missing } = collected;
        refused.extend(self.strangers()?);
        let (accepted, contributions): (Vec<Accepted>, Vec<Contribution>) =
            usable.into_iter().map(|one| (one.accepted, one.contribution)).unzip();
        let record = ClosingRecord {
            federation: self.federation.id().to_owned(),
            round: self.federation.round(),
            open: open.digest,
            members: self.federation.members.len(),
            at: now,
            accepted,
            refused,
            missing,
        };
        // A rule that cannot use the contributions says so now, while more can come.
        let state = self.advanced(&record, &contributions)?;
        let bytes = signed::sign(&record, self.key)?;
        let name = record::closing(record.round);
        let put = self.place.create(&name, bytes.clone())?;
        if put == Put::New {
            let closing = signed::read(&name, &bytes)?;
            return self.finish(&closing, &state, true);
        }
        let federation = Federation::read(self.place, Trust::Key(self.key.public()))?;
        let close = Close { federation: &federation, ..*self };
        match (&federation.closing, federation.round() == record.round) {
            (Some(closing), true) => close.follow(closing, false),
            // The other one is done with the round.
            _ => self.report_of(&self.reread(&name)?),
        }
    }

    /// Goes on from contributions that are fixed.
    fn follow(&self, closing: &Signed<ClosingRecord>, decided_here: bool) -> Result<Closed> {
        let contributions = self.fixed(&closing.statement)?;
        let state = self.advanced(&closing.statement, &contributions)?;
        self.finish(closing, &state, decided_here)
    }

    /// The contributions of all participants, each judged by itself.
    fn collect(&self) -> Result<Collected> {
        let (members, round) = (self.federation.current_members(), self.client_round()?);
        let judge = Judge { place: self.place, federation: self.federation, members: &members, round: &round };
        let mut collected = Collected::default();
        for client in &self.federation.open()?.statement.participants {
            match judge.contribution(client)? {
                None => collected.missing.push(client.clone()),
                Some(Ok(usable)) => collected.usable.push(usable),
                Some(Err(refusal)) => collected.refused.push((client.to_string(), refusal.to_string())),
            }
        }
        Ok(collected)
    }

    /// Those that go together.
    fn sifted(&self, collected: Collected) -> Result<Collected> {
        let Collected { usable, mut refused, missing } = collected;
        let plan = &self.federation.terms().plan;
        let all = usable.iter().map(|one| one.contribution.clone()).collect();
        let (_, rejected) = plan.sift(all).map_err(Error::federation("comparing the contributions"))?;
        let names: BTreeSet<&str> = rejected.iter().map(|rejected| rejected.client.as_str()).collect();
        let usable = usable.into_iter().filter(|one| !names.contains(one.accepted.client.as_str())).collect();
        refused.extend(rejected.iter().map(|rejected| {
            let problems: Vec<String> = rejected.problems.iter().map(ToString::to_string).collect();
            (rejected.client.clone(), Refusal::new(problems.join(", ")).to_string())
        }));
        refused.sort();
        Ok(Collected { usable, refused, missing })
    }

    fn refuse_early(&self, collected: &Collected, now: u64, early: bool) -> Result<()> {
        let open = &self.federation.open()?.statement;
        let all_there = collected.usable.len() == open.participants.len();
        if early || all_there || now >= open.deadline {
            return Ok(());
        }
        let mut missing = collected.missing.clone();
        missing.extend(collected.refused.iter().filter_map(|(name, _)| name.parse().ok()));
        Err(Error::TooEarly { round: open.round, seconds: open.deadline - now, missing })
    }

    fn refuse_few(&self, collected: &Collected) -> Result<()> {
        let (quorum, found) = (self.federation.terms().quorum, collected.usable.len());
        if found >= quorum {
            return Ok(());
        }
        let (refused, missing) = (collected.refused.clone(), collected.missing.clone());
        Err(Error::Quorum { round: self.federation.round(), found, quorum, refused, missing })
    }

    /// Files in the folder of contributions that are no participant's, with the reasons.
    fn strangers(&self) -> Result<Vec<(String, String)>> {
        let participants = &self.federation.open()?.statement.participants;
        let round = self.federation.round();
        strangers(self.place, round, participants)
    }

    /// The contributions that a closing fixes, as they are in the place now.
    fn fixed(&self, closing: &ClosingRecord) -> Result<Vec<Contribution>> {
        let (members, round) = (self.federation.members_of(closing.members), self.client_round()?);
        let judge = Judge { place: self.place, federation: self.federation, members: &members, round: &round };
        let mut contributions = Vec::new();
        for accepted in &closing.accepted {
            let name = record::contribution(closing.round, &accepted.client);
            let changed = |reason: String| Error::Changed { name: name.clone(), reason };
            let usable = match judge.contribution(&accepted.client)? {
                None => return Err(Error::Missing { name }),
                Some(Err(refusal)) => return Err(changed(refusal.to_string())),
                Some(Ok(usable)) => usable,
            };
            if usable.accepted != *accepted {
                return Err(changed("it is not the contribution that the round has closed with".into()));
            }
            contributions.push(usable.contribution);
        }
        Ok(contributions)
    }

    fn client_round(&self) -> Result<ClientRound> {
        client_round(self.federation, round_files(self.place, self.federation)?)
    }

    /// The state after the round: a function of the state before, of the closing and of the contributions.
    fn advanced(&self, closing: &ClosingRecord, contributions: &[Contribution]) -> Result<State> {
        let plan = self.federation.plan_of(self.key);
        let mut failed = closing.refused.clone();
        failed.extend(closing.missing.iter().map(|name| (name.to_string(), "sent nothing".to_owned())));
        let (mut state, source) = (self.federation.state(self.place)?, InMemory::new(contributions));
        let closed = Contributions::read(&source).and_then(|read| plan.close_round(&mut state, &read, failed));
        closed.map_err(Error::federation("aggregating the round")).map(|_| state)
    }

    /// Writes the state and says that the round is over.
    fn finish(&self, closing: &Signed<ClosingRecord>, state: &State, decided_here: bool) -> Result<Closed> {
        let round = closing.statement.round;
        let bytes = state.to_bytes().map_err(Error::federation("saving the state"))?;
        let record = ClosedRecord {
            federation: self.federation.id().to_owned(),
            round,
            previous: self.federation.last_digest(),
            closing: closing.digest,
            state: Object::of(&bytes),
        };
        self.place.create_same(&record::state(round), bytes)?;
        self.place.create_same(&record::closed(round), signed::sign(&record, self.key)?)?;
        self.closed(&closing.statement, state, decided_here)
    }

    fn closed(&self, closing: &ClosingRecord, state: &State, decided_here: bool) -> Result<Closed> {
        let report = state.history().last().cloned().ok_or(Error::NoResult)?;
        Ok(Closed {
            round: closing.round,
            rounds: self.federation.terms().plan.rounds,
            refused: closing.refused.clone(),
            missing: closing.missing.clone(),
            report,
            decided_here,
        })
    }

    fn reread(&self, name: &str) -> Result<Signed<ClosingRecord>> {
        let bytes = self.place.read(name, record::LARGEST_RECORD)?;
        let bytes = bytes.ok_or_else(|| Error::Missing { name: name.to_owned() })?;
        signed::read::<ClosingRecord>(name, &bytes)?.by(self.key.public(), name)
    }

    /// The report of a round that another coordinator has closed.
    fn report_of(&self, closing: &Signed<ClosingRecord>) -> Result<Closed> {
        let contributions = self.fixed(&closing.statement)?;
        let state = self.advanced(&closing.statement, &contributions)?;
        self.closed(&closing.statement, &state, false)
    }
}

/// Files in the folder of contributions that are no participant's, with the reasons.
pub(crate) fn strangers(place: &Place, round: usize, participants: &[ClientName]) -> Result<Vec<(String, String)>> {
    let listing = place.list(&record::contributions(round), 2 * participants.len() + MOST_STRANGERS)?;
    let participants: BTreeSet<&str> = participants.iter().map(ClientName::as_str).collect();
    let judged = listing.names.iter().filter_map(|name| Some((name, stranger(name, &participants)?)));
    let mut strangers: Vec<_> = judged.map(|(name, refusal)| (shortened(name), refusal.to_string())).collect();
    let more = strangers.len().saturating_sub(NAMED_STRANGERS);
    strangers.truncate(NAMED_STRANGERS);
    if more > 0 || !listing.is_whole {
        let least = if listing.is_whole { "" } else { "at least " };
        strangers.push(("others".to_owned(), format!("{least}{more} more files that are no participant's")));
    }
    Ok(strangers)
}

/// Why a file is no participant's; `None` if it is.
fn stranger(file: &str, participants: &BTreeSet<&str>) -> Option<Refusal> {
    let stem = file.strip_suffix(".json").or_else(|| {
        let (name, sum) = file.strip_suffix(".safetensors")?.rsplit_once('.')?;
        (sum.len() == 64).then_some(name)
    });
    let Some(stem) = stem else {
        return Some(Refusal::new("expected NAME.json or NAME.SHA256.safetensors"));
    };
    match stem.parse::<ClientName>() {
        Err(error) => Some(Refusal::new(error.to_string())),
        Ok(name) if participants.contains(name.as_str()) => None,
        Ok(name) => Some(Refusal::new(format!("`{name}` does not take part in this round"))),
    }
}
