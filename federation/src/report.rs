//! Reports of rounds, which the history of a run keeps.

use catelier_adapters::{Adapter, sum};
use serde::{Deserialize, Serialize};

use crate::contributions::Contributions;
use crate::error::{Error, Result};
use crate::strategy::Aggregate;

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

impl RoundReport {
    /// The report of a round with these contributions, after which the global adapter is no longer `before`.
    pub(crate) fn of(
        round: usize,
        contributions: &Contributions<'_>,
        failed: Vec<(String, String)>,
        aggregate: &Aggregate,
        before: Option<&Adapter>,
    ) -> Result<Self> {
        let failure = || Error::adapters("measuring the round");
        let client = |(header, weight, norm): (&crate::source::ContributionHeader, f64, f64)| ClientReport {
            client: header.client.clone(),
            weight,
            norm: norm as f32,
        };
        let norm = aggregate.adapter.delta_norm().map_err(failure())?;
        let change = match before {
            None => norm,
            Some(before) => {
                let difference = sum(&[(&aggregate.adapter.low_rank(), 1.0), (&before.low_rank(), -1.0)]);
                difference.and_then(|difference| difference.delta_norm()).map_err(failure())?
            }
        };
        let distance = aggregate.distance();
        Ok(Self {
            round,
            clients: contributions.iter().map(client).collect(),
            failed,
            distance: distance.absolute as f32,
            relative_distance: distance.relative() as f32,
            norm: norm as f32,
            change: change as f32,
        })
    }
}
