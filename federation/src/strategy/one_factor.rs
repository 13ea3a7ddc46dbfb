//! Rules that average one factor and hold the other at the common start, or at home.

use catelier_adapters::{Adapter, LayerUpdate};

use super::fedavg::mean_of_tensors;
use super::{Aggregate, fitting};
use crate::check::RankPolicy;
use crate::contributions::Contributions;
use crate::error::Result;
use crate::roles::{Role, Roles};

/// Which factor travels in a round, and what becomes of the other.
pub(super) fn roles(shared: Factor, other: Role) -> Roles {
    match shared {
        Factor::Up => Roles { down: other, up: Role::Shared, head: None },
        Factor::Down => Roles { down: Role::Shared, up: other, head: None },
    }
}

/// A factor of a LoRA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factor {
    /// `down` [rank, in].
    Down,
    /// `up` [out, rank].
    Up,
}

/// The factor that RoLoRA averages in a round: `up` in odd rounds, since a fresh `up` is zero and `down` has no
/// gradient beside it, and `down` in even ones.
pub(super) fn alternating(round: usize) -> Factor {
    if round % 2 == 1 { Factor::Up } else { Factor::Down }
}

/// Weighted mean of one factor; the other has the bits of the global adapter.
///
/// With a common `down` the mean of the updates is `scale * mean(up) * down`, so the rule is exact; the same holds for
/// a common `up`. Both are linear in what travels, which is half of the factors.
///
/// **Source** FFA-LoRA (`up` alone), arXiv 2403.12313; RoLoRA (alternating), arXiv 2502.01755.
///
/// # Errors
/// As [`check`](crate::check()) with [`RankPolicy::Uniform`], and [`Error::Global`](crate::Error::Global) if the contributions do not
/// have the shapes of `global`.
pub(super) fn one_factor(contributions: &Contributions<'_>, global: &Adapter, shared: Factor) -> Result<Aggregate> {
    contributions.check(RankPolicy::Uniform)?;
    fitting(global, contributions)?;
    let mean = mean_of_tensors(contributions)?;
    let kept = |(module, update): (&str, &LayerUpdate)| {
        let update = update.try_map(|name, tensor| {
            let travels = (name == "down") == (shared == Factor::Down);
            let common = global.get(module).and_then(|update| update.get(name));
            Ok(common.filter(|_| !travels).unwrap_or(tensor).clone())
        });
        update.map(|update| (module.to_owned(), update))
    };
    Aggregate::measured(mean.iter().map(kept).collect::<Result<_>>()?, contributions)
}
