//! Reports of rounds, which the history of a run keeps.

use catelier_adapters::{Adapter, sum};
use serde::{Deserialize, Serialize};

use crate::contributions::Contributions;
use crate::error::{Error, Result};
use crate::roles::{Role, Roles};
use crate::source::{ContributionHeader, ModuleHeader};
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
    /// How far the updates lie from their exact mean, in units of its norm: the root of their weighted mean square distance.
    /// 0 if all are equal; absent in reports of older programs.
    #[serde(default)]
    pub spread: f32,
    /// Bytes of the tensors that left the clients, all together; 0 in reports of older programs.
    #[serde(default)]
    pub bytes_sent: u64,
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
        roles: &Roles,
    ) -> Result<Self> {
        let failure = || Error::adapters("measuring the round");
        let client = |(header, weight, norm): (&ContributionHeader, f64, f64)| ClientReport {
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
            spread: spread(contributions, distance.mean_norm) as f32,
            bytes_sent: contributions.iter().map(|(header, ..)| shared_bytes(header, roles)).sum(),
        })
    }
}

/// The root of `Σ p ‖u − m‖² / ‖m‖²`, which is `Σ p ‖u‖² / ‖m‖² − 1`, for updates `u` with shares `p` and their mean `m`.
fn spread(contributions: &Contributions<'_>, mean_norm: f64) -> f64 {
    let total: f64 = contributions.iter().map(|(_, weight, _)| weight).sum();
    let square: f64 = contributions.iter().map(|(_, weight, norm)| weight / total * norm.powi(2)).sum();
    if mean_norm > 0.0 { (square / mean_norm.powi(2) - 1.0).max(0.0).sqrt() } else { 0.0 }
}

/// Bytes of the tensors that leave a client.
fn shared_bytes(header: &ContributionHeader, roles: &Roles) -> u64 {
    let of_module = |(path, module): (&String, &ModuleHeader)| -> usize {
        let shape = module.weight_shape();
        let shared = module.tensors.iter().filter(|(name, ..)| roles.of_shape(path, &shape, name) == Role::Shared);
        shared.map(|(_, dtype, shape)| dtype.size_in_bytes() * shape.iter().product::<usize>()).sum()
    };
    header.modules.iter().map(of_module).sum::<usize>() as u64
}
