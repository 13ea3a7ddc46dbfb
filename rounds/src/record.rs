//! The records of a federation, and where they lie in the place.
//!
//! `README.md` has the table. All times are seconds since 1970 by the clock of the coordinator.

use std::collections::BTreeMap;

use catelier_federation::RoundPlan;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::key::PublicKey;
use crate::name::ClientName;
use crate::signed::Statement;

/// Most bytes of a record that grows with the number of clients.
pub(crate) const LARGEST_RECORD: u64 = 16 << 20;

/// Most bytes of the record of a contribution.
pub(crate) const LARGEST_CONTRIBUTION_RECORD: u64 = 16 << 10;

/// Rounds have four digits in names.
pub(crate) const MOST_ROUNDS: usize = 9999;

pub(crate) const FEDERATION: &str = "federation.json";

pub(crate) fn members(version: usize) -> String {
    format!("members-{version:04}.json")
}

/// A file of a round; the state before the first round is one of round 0.
pub(crate) fn in_round(round: usize, name: &str) -> String {
    format!("rounds/{round:04}/{name}")
}

pub(crate) fn open(round: usize) -> String {
    in_round(round, "open.json")
}

pub(crate) fn closing(round: usize) -> String {
    in_round(round, "closing.json")
}

pub(crate) fn closed(round: usize) -> String {
    in_round(round, "closed.json")
}

pub(crate) fn state(round: usize) -> String {
    in_round(round, "state.safetensors")
}

pub(crate) fn contributions(round: usize) -> String {
    in_round(round, "contributions")
}

pub(crate) fn contribution(round: usize, client: &ClientName) -> String {
    in_round(round, &format!("contributions/{client}.json"))
}

/// Tensors are named by their sum: an upload that broke off, or was begun by somebody else, is in nobody's way.
pub(crate) fn tensors(round: usize, client: &ClientName, sha256: &Digest) -> String {
    in_round(round, &format!("contributions/{client}.{sha256}.safetensors"))
}

/// An object of the place whose content a record fixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Sum of its bytes.
    pub sha256: Digest,
    /// Their number.
    pub bytes: u64,
}

impl Object {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { sha256: Digest::of(bytes), bytes: bytes.len() as u64 }
    }
}

/// What the rounds of a federation are like; fixed when it is created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// The plan. The seed of its privacy is 0: noise on the server comes from the coordinator's key.
    pub plan: RoundPlan,
    /// Contributions that a round needs, at least 1.
    pub quorum: usize,
    /// From the opening of a round to its deadline.
    pub deadline_seconds: u64,
    /// Most bytes of a contribution's file.
    pub most_bytes: u64,
    /// Fingerprint of the base; `None` leaves it to the contributions to agree on one.
    pub base: Option<String>,
}

/// `federation.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FederationRecord {
    /// 16 random bytes in hexadecimal digits.
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) coordinator: PublicKey,
    pub(crate) terms: Terms,
    /// The state before the first round, where it is not empty.
    pub(crate) start: Option<Object>,
}

impl Statement for FederationRecord {
    const KIND: &'static str = "federation";
}

/// `members-NNNN.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MembersRecord {
    pub(crate) federation: String,
    /// From 1.
    pub(crate) version: usize,
    /// Sum of the version before; of the federation's record for the first.
    pub(crate) previous: Digest,
    pub(crate) members: BTreeMap<ClientName, PublicKey>,
}

impl Statement for MembersRecord {
    const KIND: &'static str = "members";
}

/// `open.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OpenRecord {
    pub(crate) federation: String,
    pub(crate) round: usize,
    /// Sum of `closed.json` of the round before; of the federation's record for the first.
    pub(crate) previous: Digest,
    /// Version of the members from whom the participants were chosen.
    pub(crate) members: usize,
    pub(crate) opened: u64,
    pub(crate) deadline: u64,
    pub(crate) participants: Vec<ClientName>,
    /// The files of the client's round.
    pub(crate) files: BTreeMap<String, Object>,
}

impl Statement for OpenRecord {
    const KIND: &'static str = "open";
}

/// `contributions/NAME.json`, signed by the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContributionRecord {
    pub(crate) federation: String,
    pub(crate) round: usize,
    pub(crate) client: ClientName,
    /// The tensors.
    pub(crate) tensors: Object,
    /// The weight in decimal digits, as in the header of the tensors.
    pub(crate) weight: String,
}

impl Statement for ContributionRecord {
    const KIND: &'static str = "contribution";
}

/// A contribution that a round closes with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    pub(crate) client: ClientName,
    /// Sum of the contribution's record.
    pub(crate) record: Digest,
    pub(crate) tensors: Object,
}

/// `closing.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ClosingRecord {
    pub(crate) federation: String,
    pub(crate) round: usize,
    /// Sum of `open.json`.
    pub(crate) open: Digest,
    /// Version of the members whose keys were asked for.
    pub(crate) members: usize,
    pub(crate) at: u64,
    /// In the order of their names.
    pub(crate) accepted: Vec<Accepted>,
    /// Names and reasons.
    pub(crate) refused: Vec<(String, String)>,
    pub(crate) missing: Vec<ClientName>,
}

impl Statement for ClosingRecord {
    const KIND: &'static str = "closing";
}

/// `closed.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ClosedRecord {
    pub(crate) federation: String,
    pub(crate) round: usize,
    /// As that of `open.json`.
    pub(crate) previous: Digest,
    /// Sum of `closing.json`.
    pub(crate) closing: Digest,
    /// The state after the round.
    pub(crate) state: Object,
}

impl Statement for ClosedRecord {
    const KIND: &'static str = "closed";
}
