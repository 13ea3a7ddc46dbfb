//! What the server asks of a client in a round.

use candle_core::Tensor;
use catelier_adapters::{Adapter, LayerUpdate, sum};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::payload::ShareFilter;
use crate::roles::{Role, Roles};

/// The adapter that a client trains from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// The global adapter; before the first round, a fresh one.
    #[default]
    Global,
    /// A fresh adapter, since the global one is merged into the base.
    Fresh,
}

/// A part of a round's local steps, and what is trained in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Share of the local steps, above 0 and at most 1; the shares of all phases add up to 1.
    pub share: f64,
    /// Whether the tensors outside of the head are trained.
    pub body: bool,
    /// Whether the head is trained.
    pub head: bool,
}

/// What the server asks of a client in a round. A client that cannot do it says so before it trains
/// ([`Client::can_follow`](crate::Client::can_follow)).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instructions {
    /// The round, from 1.
    pub round: usize,
    /// The adapter to train from.
    pub start: Start,
    /// Whether this or a later round asks the client to add an update to its base.
    pub merges: bool,
    /// An update that the client adds to its base before it trains; its weights stay fixed.
    #[serde(skip)]
    pub merged: Option<Adapter>,
    /// What becomes of each tensor.
    pub roles: Roles,
    /// Parts of the local steps; empty if everything that is not frozen is trained in all of them.
    pub phases: Vec<Phase>,
    /// The factor `mu >= 0` of FedProx's term; see [`proximal_term`]. 0 for none.
    pub proximal: f64,
}

impl Instructions {
    /// Whether the client only trains all tensors from the global adapter and sends them all.
    pub fn are_plain(&self) -> bool {
        let from_global = self.start == Start::Global && !self.merges && self.merged.is_none();
        from_global && self.roles.are_shared() && self.phases.is_empty() && self.proximal == 0.0
    }

    /// The adapter that a client trains from: shared and frozen tensors of the global adapter, personal ones of its own
    /// last adapter, or of the global one if it has none yet. `None` means a fresh adapter.
    ///
    /// # Errors
    /// [`Error::Home`] if the own adapter lacks a personal tensor.
    pub fn starting_point(&self, global: Option<&Adapter>, own: Option<&Adapter>) -> Result<Option<Adapter>> {
        let (Start::Global, Some(global)) = (self.start, global) else { return Ok(None) };
        let Some(own) = own else { return Ok(Some(global.clone())) };
        let kept = |(module, update): (&str, &LayerUpdate)| {
            let of_own = |name: &str| own.get(module).and_then(|own| own.get(name)).cloned();
            let update = update.try_map(|name, tensor| match self.roles.of(module, update, name) {
                Role::Personal => of_own(name).ok_or_else(|| Error::Home { tensor: format!("{module}.{name}") }),
                Role::Shared | Role::Frozen => Ok(tensor.clone()),
            })?;
            Ok((module.to_owned(), update))
        };
        global.iter().map(kept).collect::<Result<Adapter>>().map(Some)
    }

    /// Names of the parameters that get a gradient and optimizer state: all that are not frozen.
    pub fn trained(&self, adapter: &Adapter) -> Vec<String> {
        let mut names = self.roles.names(adapter, Role::Shared);
        names.extend(self.roles.names(adapter, Role::Personal));
        names.sort();
        names
    }

    /// The filter at the client's border.
    pub fn filter(&self) -> ShareFilter {
        ShareFilter::new(self.roles.clone())
    }

    /// The whole update of the base under these instructions: the merged one and `adapter`, stacked.
    ///
    /// # Errors
    /// [`Error::Adapters`] if they do not fit each other.
    pub fn whole(&self, adapter: &Adapter) -> Result<Adapter> {
        match &self.merged {
            None => Ok(adapter.clone()),
            Some(merged) => sum(&[(adapter, 1.0), (merged, 1.0)]).map_err(Error::adapters("adding the merged update")),
        }
    }
}

/// FedProx's term of the local loss, `mu / 2 · Σ ‖w − w_global‖²` over all tensors that both have, a scalar.
///
/// **Gradient** flows to `adapter`: `mu (w − w_global)`.
///
/// **Source** FedProx, arXiv 1812.06127, equation 2.
///
/// # Errors
/// [`Error::Tensor`] if two tensors of one name differ in shape; [`Error::NoContributions`] if there is no common
/// tensor.
pub fn proximal_term(adapter: &Adapter, global: &Adapter, mu: f64) -> Result<Tensor> {
    let failed = || Error::tensor("computing the proximal term");
    let mut terms = Vec::new();
    for (module, update) in adapter.iter() {
        for (name, tensor) in update.tensors() {
            let Some(start) = global.get(module).and_then(|update| update.get(name)) else { continue };
            terms.push(tensor.sub(&start.detach()).and_then(|moved| moved.sqr()?.sum_all()).map_err(failed())?);
        }
    }
    let first = terms.first().cloned().ok_or(Error::NoContributions)?;
    let sum = terms[1..].iter().try_fold(first, |sum, term| sum + term).map_err(failed())?;
    (sum * (mu / 2.0)).map_err(failed())
}
