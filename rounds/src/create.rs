//! A new federation.

use catelier_adapters::Adapter;
use catelier_federation::{OnFailure, State};
use catelier_numerics::hex;

use crate::error::{Error, Result};
use crate::key::PrivateKey;
use crate::place::{Place, Put};
use crate::record::{self, FederationRecord, MOST_ROUNDS, Object, Terms};
use crate::signed;

/// Most bytes that a contribution may have, whatever the terms say: `ShareFilter` lets no more leave a client.
const LARGEST_CONTRIBUTION: u64 = 2 << 30;

impl Terms {
    /// The terms as they are signed: the seed of noise is nobody's to read, and a round goes on without a contribution
    /// that is refused.
    fn published(mut self) -> Self {
        self.plan.on_failure = OnFailure::SkipClient;
        if let Some(privacy) = &mut self.plan.privacy {
            privacy.seed = 0;
        }
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        self.plan.validate().map_err(Error::federation("checking the plan"))?;
        let refused = |what, expected: String, found: String| Err(Error::Terms { what, expected, found });
        let rounds = self.plan.rounds;
        if !(1..=MOST_ROUNDS).contains(&rounds) {
            return refused("rounds", format!("1 to {MOST_ROUNDS}"), rounds.to_string());
        }
        if self.quorum == 0 {
            return refused("quorum", "1 or more".into(), "0".into());
        }
        if !(1..=LARGEST_CONTRIBUTION).contains(&self.most_bytes) {
            let expected = format!("1 to {LARGEST_CONTRIBUTION} bytes");
            return refused("size of a contribution", expected, self.most_bytes.to_string());
        }
        if self.plan.secure_aggregation {
            let expected = "none: everybody who can read the place sees the contributions";
            return refused("secure aggregation", expected.into(), "on".into());
        }
        Ok(())
    }
}

/// Creates a federation in a place that has none. `id` are 16 random bytes, which tell it from all others, `now`
/// seconds since 1970, `start` the adapter that all clients start from.
///
/// # Errors
/// [`Error::FederationExists`]; [`Error::Terms`] and [`Error::Federation`] for terms that no round could keep.
pub fn create(
    place: &Place,
    key: &PrivateKey,
    id: [u8; 16],
    terms: Terms,
    start: Option<Adapter>,
    now: u64,
) -> Result<()> {
    let terms = terms.published();
    terms.validate()?;
    let exists = || Error::FederationExists { address: place.address().to_owned() };
    if place.has(record::FEDERATION)? {
        return Err(exists());
    }
    let state = start.map_or_else(State::new, State::starting_from);
    terms.plan.configure(1, &state).map_err(Error::federation("preparing the first round"))?;
    let start = match state.global() {
        None => None,
        Some(_) => {
            let bytes = state.to_bytes().map_err(Error::federation("saving the start"))?;
            let object = Object::of(&bytes);
            place.create_same(&record::state(0), bytes)?;
            Some(object)
        }
    };
    let record = FederationRecord { id: hex::encode(id), created: now, coordinator: key.public(), terms, start };
    match place.create(record::FEDERATION, signed::sign(&record, key)?)? {
        Put::New => Ok(()),
        Put::Exists => Err(exists()),
    }
}
