//! Reports of rounds, which the history of a run keeps.

use serde::{Deserialize, Serialize};

/// Report of one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// The round, from 1.
    pub round: usize,
    /// The clients that contributed, in the order in which they trained.
    pub clients: Vec<ClientReport>,
    /// The clients that failed or were refused, each with the text of its error.
    pub failed: Vec<(String, String)>,
    /// Distance of the aggregate from the exact mean of the updates, in Frobenius norm.
    pub distance: f32,
    /// The distance in units of the exact mean's norm.
    pub relative_distance: f32,
    /// Frobenius norm of the global update, without what clients merged into their base.
    pub norm: f32,
    /// Frobenius norm of the change of the global update since the round before; in the first
    /// round, `norm`.
    pub change: f32,
}

/// Report of one client's contribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Name of the client.
    pub client: String,
    /// Weight of its contribution.
    pub weight: f64,
    /// Frobenius norm of its update.
    pub norm: f32,
}
