//! The weights of contributions in a mean.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::contribution::Contribution;

/// Where the weights of contributions come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// The contributions' own weights: usually their numbers of examples.
    #[default]
    Examples,
    /// One weight for all. An artist with three pictures counts as much as one with three hundred, and needs no number
    /// to be told, which central privacy relies on.
    Uniform,
    /// A similarity for each client, above 0, such as that of its style to one that is asked for. A client that is not
    /// named has no weight, so its contribution is refused by name.
    Similarity(BTreeMap<String, f64>),
}

impl Weighting {
    /// The weight of a client whose contribution has this weight of its own.
    pub fn weight(&self, client: &str, own: f64) -> f64 {
        match self {
            Self::Examples => own,
            Self::Uniform => 1.0,
            Self::Similarity(similarities) => similarities.get(client).copied().unwrap_or(0.0),
        }
    }

    /// The contributions with these weights.
    pub fn apply(&self, contributions: &[Contribution]) -> Vec<Contribution> {
        let weight = |contribution: &Contribution| self.weight(&contribution.client, contribution.weight);
        contributions.iter().map(|c| Contribution { weight: weight(c), ..c.clone() }).collect()
    }
}
