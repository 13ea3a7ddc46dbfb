//! The result of a federation.

use catelier_adapters::Adapter;
use catelier_federation::Start;

use crate::error::{Error, Result};
use crate::federation::{Federation, Trust};
use crate::fetch::pinned;
use crate::place::Place;
use crate::record::Terms;

/// The adapter after the rounds that have closed.
#[derive(Debug)]
pub struct Outcome {
    /// Rounds that have closed.
    pub completed: usize,
    /// What the rounds are like.
    pub terms: Terms,
    /// The whole update of the base, with what clients merge into it.
    pub adapter: Adapter,
}

/// The adapter after the last round that has closed.
///
/// # Errors
/// [`Error::NoResult`] before the first round has closed; [`Error::NotPinned`] without trust; those of reading the
/// place.
pub fn result(place: &Place, trust: Trust<'_>) -> Result<Outcome> {
    let federation: Federation = pinned(place, trust)?;
    let completed = federation.closed.len();
    let state = federation.state(place)?;
    let global = state.global().filter(|_| completed > 0).ok_or(Error::NoResult)?;
    let failed = || Error::federation("joining the result");
    let instructions = federation.terms().plan.configure(completed + 1, &state).map_err(failed())?;
    let adapter = match instructions.start {
        Start::Global => instructions.whole(global).map_err(failed())?,
        // The global adapter is what clients merge, and they start afresh beside it.
        Start::Fresh => global.clone(),
    };
    Ok(Outcome { completed, terms: federation.terms().clone(), adapter })
}
