//! All contributions are checked before any is used, and every offender is named.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use catelier_adapters::{Fingerprint, LoraFactors};

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

/// Checks that contributions can be aggregated: names, weights, bases, modules, shapes, finite
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
    for (module, factors) in contribution.adapter.iter() {
        if !is_finite(factors).map_err(Error::tensor("checking factors"))? {
            not_finite.push(module);
        }
    }
    if let Some(first) = not_finite.first() {
        offences.push(Offence::NotFinite { count: not_finite.len(), first: (*first).to_owned() });
    }
    Ok(offences)
}

fn is_finite(factors: &LoraFactors) -> candle_core::Result<bool> {
    let finite = |tensor: &Tensor| {
        let difference = tensor.sub(tensor)?.to_dtype(candle_core::DType::F32)?;
        Ok::<_, candle_core::Error>(difference.sum_all()?.to_scalar::<f32>()? == 0.0)
    };
    Ok(factors.alpha.is_finite() && finite(&factors.down)? && finite(&factors.up)?)
}

/// Output size and the shape of the input side of every module.
type Sizes = BTreeMap<String, Vec<usize>>;

/// What most contributions are.
struct Usual {
    sizes: Sizes,
    /// Fingerprints of the base, one for each version of them.
    bases: Vec<String>,
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
        let ranks = modules.clone().filter_map(|module| {
            let rank = most_common(of_module(module).into_iter().map(LoraFactors::rank))?;
            Some((module.clone(), rank))
        });
        let alphas = modules.clone().filter_map(|module| {
            // Bits, since floating point numbers have no order; equal alphas have equal bits.
            let alpha = most_common(of_module(module).into_iter().map(|factors| factors.alpha.to_bits()))?;
            Some((module.clone(), f64::from_bits(alpha)))
        });
        Self {
            bases: usual_bases(sorted.iter().filter_map(|contribution| contribution.base_fingerprint.as_deref())),
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
        if factors == FactorsMay::NotDiffer {
            offences.extend(self.first_rank(contribution));
            offences.extend(self.first_alpha(contribution));
        }
        offences
    }

    fn other_base(&self, contribution: &Contribution) -> Option<Offence> {
        let found = contribution.base_fingerprint.clone()?;
        let differs = |expected: &&String| !Fingerprint::parse(expected).agrees_with(Fingerprint::parse(&found));
        let expected = self.bases.iter().find(differs)?.clone();
        Some(Offence::Base { expected, found })
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

    fn first_rank(&self, contribution: &Contribution) -> Option<Offence> {
        contribution.adapter.iter().find_map(|(module, factors)| {
            let (expected, found) = (*self.ranks.get(module)?, factors.rank());
            (expected != found).then(|| Offence::Rank { module: module.to_owned(), expected, found })
        })
    }

    fn first_alpha(&self, contribution: &Contribution) -> Option<Offence> {
        contribution.adapter.iter().find_map(|(module, factors)| {
            let (expected, found) = (*self.alphas.get(module)?, factors.alpha);
            (expected != found).then(|| Offence::Alpha { module: module.to_owned(), expected, found })
        })
    }
}

/// The most common base among fingerprints of each version, since those of different versions cannot be compared. Of version 2
/// first the part that all copies of a base have, then the part that copies in bf16 lack.
fn usual_bases<'a>(fingerprints: impl Iterator<Item = &'a str>) -> Vec<String> {
    let parsed: Vec<Fingerprint<'a>> = fingerprints.map(Fingerprint::parse).collect();
    let unversioned = most_common(parsed.iter().filter(|one| matches!(one, Fingerprint::Unversioned(_))).copied());
    let versioned = parsed.iter().filter_map(|one| match *one {
        Fingerprint::V2 { signs, values } => Some((signs, values)),
        Fingerprint::Unversioned(_) => None,
    });
    let usual = most_common(versioned.clone().map(|(signs, _)| signs)).map(|usual| {
        let values = versioned.filter(|(signs, _)| *signs == usual).filter_map(|(_, values)| values);
        Fingerprint::V2 { signs: usual, values: most_common(values) }
    });
    unversioned.into_iter().chain(usual).map(|one| one.to_string()).collect()
}

fn sizes(contribution: &Contribution) -> Sizes {
    let modules = contribution.adapter.iter();
    let size = |factors: &LoraFactors| [&factors.up.dims()[..1], &factors.down.dims()[1..]].concat();
    modules.map(|(module, factors)| (module.to_owned(), size(factors))).collect()
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
