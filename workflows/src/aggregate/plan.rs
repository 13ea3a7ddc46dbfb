//! The plan of a round, from a file or from flags.

use std::path::Path;

use catelier_federation::{RoundPlan, Strategy, TargetRank};
use catelier_numerics::bounded;

use crate::error::{Context, Error, Result};

/// Largest plan: patterns of a head and similarities of clients, nothing larger.
const LARGEST_PLAN: u64 = 1 << 20;

/// Reads a plan: JSON where the name ends in `.json`, otherwise TOML. What it does not name has its default.
pub(super) fn read(path: &Path) -> Result<RoundPlan> {
    let text = bounded::read_text(path, LARGEST_PLAN).user_error(format!("cannot read `{}`", path.display()))?;
    let unusable = format!("the plan `{}` cannot be used", path.display());
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let plan: RoundPlan = match is_json {
        true => serde_json::from_str(&text).user_error(&unusable)?,
        false => toml::from_str(&text).user_error(&unusable)?,
    };
    plan.validate().user_error(unusable)?;
    Ok(plan)
}

/// The strategy with this rank of its result.
pub(super) fn with_rank(mut strategy: Strategy, rank: Option<usize>) -> Result<Strategy> {
    let Some(rank) = rank else { return Ok(strategy) };
    match &mut strategy {
        Strategy::Product { rank: target, .. }
        | Strategy::Median { rank: target }
        | Strategy::TrimmedMean { rank: target, .. } => *target = TargetRank::Fixed(rank),
        Strategy::Fedavg => {
            return Err(Error::user(
                "`fedavg` keeps the rank of its adapters",
                "leave `--rank` out, or use `--strategy product`",
            ));
        }
        other => {
            return Err(Error::user(
                format!("`{other}` decides the rank of its result itself"),
                "leave `--rank` out, or use `--strategy product`",
            ));
        }
    }
    Ok(strategy)
}
