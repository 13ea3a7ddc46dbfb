//! A client's contribution to a round.

use catelier_adapters::Adapter;

use crate::error::{Error, Result};

/// A client's contribution to a round: an adapter and its weight. Nothing else leaves the client.
#[derive(Debug, Clone)]
pub struct Contribution {
    /// Name of the client, unique in its round.
    pub client: String,
    /// The trained adapter.
    pub adapter: Adapter,
    /// Weight of the adapter in the mean, finite and above 0; only ratios matter.
    pub weight: f64,
    /// Fingerprint of the base model that the adapter was trained on, where it is known.
    pub base_fingerprint: Option<String>,
}

impl Contribution {
    /// A contribution whose weight is its number of training examples.
    pub fn from_examples(client: impl Into<String>, adapter: Adapter, examples: usize) -> Self {
        Self { client: client.into(), adapter, weight: examples as f64, base_fingerprint: None }
    }

    /// The same contribution with the fingerprint of its base.
    pub fn on_base(mut self, fingerprint: impl Into<String>) -> Self {
        self.base_fingerprint = Some(fingerprint.into());
        self
    }

    /// The Frobenius norm of the low-rank part of the update.
    pub(crate) fn norm(&self) -> Result<f64> {
        self.adapter.low_rank().delta_norm().map_err(Error::adapters("measuring contributions"))
    }
}

/// Contributions with weights normalised to sum 1, sorted by client name, so that results do not depend on the order of
/// arrival.
pub(crate) fn shares(contributions: &[Contribution]) -> Vec<(&Contribution, f64)> {
    let mut sorted: Vec<&Contribution> = contributions.iter().collect();
    sorted.sort_by(|left, right| left.client.cmp(&right.client));
    let total: f64 = sorted.iter().map(|contribution| contribution.weight).sum();
    sorted.into_iter().map(|contribution| (contribution, contribution.weight / total)).collect()
}
