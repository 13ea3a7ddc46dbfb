//! The server's side of the border: what a client sent, checked alone and against the global adapter.

use std::collections::BTreeSet;

use catelier_adapters::{Adapter, Fingerprint, LayerUpdate};

use crate::check::{RankPolicy, rejections};
use crate::contribution::Contribution;
use crate::error::{Problem, Result};
use crate::files::SentContribution;
use crate::instructions::{Instructions, Start};
use crate::plan::RoundPlan;
use crate::roles::Role;

impl RoundPlan {
    /// What a client sent, as [`aggregate`](Self::aggregate) takes it: completed from the global adapter, after all
    /// checks that need no other contribution. A client that was not honest at [its own border](Self::leaving) is
    /// found here: tensors that should have stayed at home or are missing, values, sizes, modules that the global
    /// adapter has not, and, where the federation is for one base, another base than `base`. [`sift`](Self::sift)
    /// compares contributions with each other.
    ///
    /// # Errors
    /// All problems of the contribution, as the inner error; the outer one if a tensor cannot be read.
    pub fn arriving(
        &self,
        instructions: &Instructions,
        sent: &SentContribution,
        global: Option<&Adapter>,
        base: Option<&str>,
    ) -> Result<Result<Contribution, Vec<Problem>>> {
        let mut problems: Vec<Problem> = other_base(base, sent.base_fingerprint.as_deref()).into_iter().collect();
        let contribution = match sent.complete(global) {
            Ok(contribution) => contribution,
            Err(error) => {
                problems.push(Problem::Parts { reason: reason(&error) });
                return Ok(Err(problems));
            }
        };
        problems.extend(travelled(instructions, sent, &contribution.adapter));
        if let Some(global) = global {
            let body = self.personal.as_ref().map_or(global.clone(), |personal| personal.body_of(global));
            let ranks = match instructions.start {
                Start::Global => self.strategy.rank_policy(),
                Start::Fresh => RankPolicy::Mixed,
            };
            problems.extend(fit(&body, &contribution.adapter, ranks));
        }
        problems.extend(instructions.filter().outgoing(&contribution.adapter, global)?.err().into_iter().flatten());
        let alone = self.weighting.apply(std::slice::from_ref(&contribution));
        let own = rejections(&alone, self.strategy.rank_policy(), None)?;
        problems.extend(own.into_iter().flat_map(|rejected| rejected.problems));
        problems.dedup();
        Ok(if problems.is_empty() { Ok(contribution) } else { Err(problems) })
    }
}

fn other_base(expected: Option<&str>, found: Option<&str>) -> Option<Problem> {
    let (expected, found) = expected.zip(found)?;
    let agrees = Fingerprint::parse(expected).agrees_with(Fingerprint::parse(found));
    (!agrees).then(|| Problem::Base { expected: expected.to_owned(), found: found.to_owned() })
}

/// The shared tensors travel, all of them and no other.
fn travelled(instructions: &Instructions, sent: &SentContribution, adapter: &Adapter) -> Vec<Problem> {
    let shared: BTreeSet<String> = instructions.roles.names(adapter, Role::Shared).into_iter().collect();
    let sent: BTreeSet<String> = sent.payload.tensors.keys().cloned().collect();
    let extra = sent.difference(&shared).next().map(|tensor| Problem::NotShared { tensor: tensor.clone() });
    let absent = shared.difference(&sent).next().map(|tensor| Problem::MissingTensor { tensor: tensor.clone() });
    extra.into_iter().chain(absent).collect()
}

/// Where the modules of a contribution differ from those of the global adapter's body.
fn fit(body: &Adapter, own: &Adapter, ranks: RankPolicy) -> Vec<Problem> {
    let absent_in = |left: &Adapter, right: &Adapter| {
        let absent: Vec<String> =
            left.iter().map(|(m, _)| m).filter(|m| right.get(m).is_none()).map(str::to_owned).collect();
        absent.first().map(|first| (absent.len(), first.clone()))
    };
    let missing = absent_in(body, own).map(|(count, first)| Problem::MissingModules { count, first });
    let unknown = absent_in(own, body).map(|(count, first)| Problem::UnknownModules { count, first });
    let both = own.iter().filter_map(|(module, update)| Some((module, body.get(module)?, update)));
    let differing = both.filter_map(|(module, common, update)| differing(module, common, update, ranks)).next();
    missing.into_iter().chain(unknown).chain(differing).collect()
}

fn differing(module: &str, common: &LayerUpdate, own: &LayerUpdate, ranks: RankPolicy) -> Option<Problem> {
    let module = module.to_owned();
    let (expected, found) = (common.weight_shape(), own.weight_shape());
    if expected != found {
        return Some(Problem::Shape { module, expected, found });
    }
    if common.kind() != own.kind() {
        return Some(Problem::Kind { module, expected: common.kind(), found: own.kind() });
    }
    match ranks {
        RankPolicy::Uniform if common.rank() != own.rank() => {
            Some(Problem::Rank { module, expected: common.rank(), found: own.rank() })
        }
        RankPolicy::Uniform if common.alpha().to_bits() != own.alpha().to_bits() => {
            Some(Problem::Alpha { module, expected: common.alpha(), found: own.alpha() })
        }
        RankPolicy::Uniform | RankPolicy::Mixed => None,
    }
}

/// The error and its causes in one line.
fn reason(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
