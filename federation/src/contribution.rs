//! A client's contribution to a round.

use catelier_adapters::Adapter;

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
}
