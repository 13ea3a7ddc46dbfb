//! All contributions are checked before any is used, and every offender is named.

use std::collections::{BTreeMap, BTreeSet};

use catelier_adapters::{LayerUpdate, UpdateKind};

use crate::contribution::Contribution;
use crate::error::{Error, Offence, Offender, Result};

/// What a strategy can do with the factors of different clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactorsMay {
    /// Ranks and alphas may differ.
    Differ,
    /// Every module needs one rank and one alpha.
    NotDiffer,
}

/// Checks that contributions can be aggregated: names, weights, bases, modules, shapes, kinds, finite
/// values, and if the strategy needs it, ranks and alphas. What most contributions are is taken
/// for right; of equally common ones, what comes first by client name.
///
/// **Errors** [`Error::NoContributions`]; [`Error::Contributions`] with all offenders.
pub fn check(contributions: &[Contribution], factors: FactorsMay) -> Result<()> {
    if contributions.is_empty() {
        return Err(Error::NoContributions);
    }
    let usual = Usual::of(contributions);
    let mut offenders = Vec::new();
    for contribution in contributions {
        let mut offences = offences_alone(contribution, contributions)?;
        offences.extend(usual.offences(contribution, factors));
        if !offences.is_empty() {
            offenders.push(Offender { client: contribution.client.clone(), offences });
        }
    }
    if offenders.is_empty() {
        return Ok(());
    }
    Err(Error::Contributions { total: contributions.len(), offenders })
}

/// What is wrong with a contribution whatever the others' adapters are.
fn offences_alone(contribution: &Contribution, all: &[Contribution]) -> Result<Vec<Offence>> {
    let mut offences = Vec::new();
    if contribution.client.trim().is_empty() {
        offences.push(Offence::NoName);
    } else if all.iter().filter(|other| other.client == contribution.client).count() > 1 {
        offences.push(Offence::Duplicate);
    }
    if !(contribution.weight.is_finite() && contribution.weight > 0.0) {
        offences.push(Offence::Weight { weight: contribution.weight });
    }
    if contribution.adapter.is_empty() {
        offences.push(Offence::Empty);
    }
    let mut not_finite = Vec::new();
    for (module, update) in contribution.adapter.iter() {
        if !update.is_finite().map_err(Error::adapters("checking updates"))? {
            not_finite.push(module);
        }
    }
    if let Some(first) = not_finite.first() {
        offences.push(Offence::NotFinite { count: not_finite.len(), first: (*first).to_owned() });
    }
    Ok(offences)
}

/// Output size and the shape of the input side of every module.
type Sizes = BTreeMap<String, Vec<usize>>;

/// What most contributions are.
struct Usual {
    sizes: Sizes,
    base: Option<String>,
    kinds: BTreeMap<String, UpdateKind>,
    ranks: BTreeMap<String, usize>,
    alphas: BTreeMap<String, f64>,
}

impl Usual {
    fn of(contributions: &[Contribution]) -> Self {
        let mut sorted: Vec<&Contribution> = contributions.iter().collect();
        sorted.sort_by(|left, right| left.client.cmp(&right.client));
        let full = || sorted.iter().filter(|contribution| !contribution.adapter.is_empty());
        let sizes = most_common(full().map(|contribution| sizes(contribution))).unwrap_or_default();
        let modules = sizes.keys();
        let of_module = |module: &String| full().filter_map(|c| c.adapter.get(module)).collect::<Vec<_>>();
        let kinds = modules.clone().filter_map(|module| {
            let kind = most_common(of_module(module).into_iter().map(LayerUpdate::kind))?;
            Some((module.clone(), kind))
        });
        let ranks = modules.clone().filter_map(|module| {
            let rank = most_common(of_module(module).into_iter().map(LayerUpdate::rank))?;
            Some((module.clone(), rank))
        });
        let alphas = modules.clone().filter_map(|module| {
            // Bits, since floating point numbers have no order; equal alphas have equal bits.
            let alpha = most_common(of_module(module).into_iter().map(|update| update.alpha().to_bits()))?;
            Some((module.clone(), f64::from_bits(alpha)))
        });
        Self {
            base: most_common(sorted.iter().filter_map(|contribution| contribution.base_fingerprint.clone())),
            kinds: kinds.collect(),
            ranks: ranks.collect(),
            alphas: alphas.collect(),
            sizes,
        }
    }

    /// What is wrong with a contribution, measured against the usual.
    fn offences(&self, contribution: &Contribution, factors: FactorsMay) -> Vec<Offence> {
        let mut offences = Vec::new();
        offences.extend(self.other_base(contribution));
        if contribution.adapter.is_empty() {
            return offences;
        }
        let own = sizes(contribution);
        offences.extend(missing(&self.sizes, &own).map(|(count, first)| Offence::MissingModules { count, first }));
        offences.extend(missing(&own, &self.sizes).map(|(count, first)| Offence::UnknownModules { count, first }));
        offences.extend(self.first_shape(&own));
        offences.extend(self.first_kind(contribution));
        if factors == FactorsMay::NotDiffer {
            offences.extend(self.first_rank(contribution));
            offences.extend(self.first_alpha(contribution));
        }
        offences
    }

    fn other_base(&self, contribution: &Contribution) -> Option<Offence> {
        let (expected, found) = (self.base.clone()?, contribution.base_fingerprint.clone()?);
        (expected != found).then_some(Offence::Base { expected, found })
    }

    fn first_shape(&self, own: &Sizes) -> Option<Offence> {
        own.iter().find_map(|(module, found)| {
            let expected = self.sizes.get(module)?;
            (expected != found).then(|| Offence::Shape {
                module: module.clone(),
                expected: expected.clone(),
                found: found.clone(),
            })
        })
    }

    fn first_kind(&self, contribution: &Contribution) -> Option<Offence> {
        contribution.adapter.iter().find_map(|(module, update)| {
            let (expected, found) = (*self.kinds.get(module)?, update.kind());
            (expected != found).then(|| Offence::Kind { module: module.to_owned(), expected, found })
        })
    }

    fn first_rank(&self, contribution: &Contribution) -> Option<Offence> {
        contribution.adapter.iter().find_map(|(module, update)| {
            let (expected, found) = (*self.ranks.get(module)?, update.rank());
            (expected != found).then(|| Offence::Rank { module: module.to_owned(), expected, found })
        })
    }

    fn first_alpha(&self, contribution: &Contribution) -> Option<Offence> {
        contribution.adapter.iter().find_map(|(module, update)| {
            let (expected, found) = (*self.alphas.get(module)?, update.alpha());
            (expected != found).then(|| Offence::Alpha { module: module.to_owned(), expected, found })
        })
    }
}

fn sizes(contribution: &Contribution) -> Sizes {
    let modules = contribution.adapter.iter();
    modules.map(|(module, update)| (module.to_owned(), update.weight_shape())).collect()
}

/// How many of the expected modules are absent, and the first of them.
fn missing(expected: &Sizes, found: &Sizes) -> Option<(usize, String)> {
    let absent: BTreeSet<_> = expected.keys().filter(|module| !found.contains_key(*module)).collect();
    absent.first().map(|first| (absent.len(), (*first).clone()))
}

/// The value that occurs most often; of equally common ones, the one that comes first.
fn most_common<T: PartialEq>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: Vec<(T, usize)> = Vec::new();
    for value in values {
        match counts.iter_mut().find(|(known, _)| *known == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    let highest = counts.iter().map(|(_, count)| *count).max()?;
    counts.into_iter().find(|(_, count)| *count == highest).map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_common_value_wins_and_then_the_first() {
        assert_eq!(most_common([1, 2, 2, 3].into_iter()), Some(2));
        assert_eq!(most_common([3, 1, 1, 3].into_iter()), Some(3));
        assert_eq!(most_common(std::iter::empty::<u8>()), None);
    }
}
