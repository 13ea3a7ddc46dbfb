//! The check of all contributions before any is used; the error names every contribution that fails.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::DType;
use catelier_adapters::{Adapter, Fingerprint, LayerUpdate, UpdateKind};
use catelier_numerics::finite::largest_magnitude;

use crate::contribution::Contribution;
use crate::error::{Error, Problem, RejectedContribution, Result};
use crate::strategy::lower_median;

/// Whether a strategy needs the same rank and alpha from all clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RankPolicy {
    /// Ranks and alphas may differ between clients.
    Mixed,
    /// All clients need the same rank and alpha at a module.
    Uniform,
}

/// Checks that contributions can be aggregated: names, weights, bases, modules, shapes, kinds, finite
/// values, and under [`RankPolicy::Uniform`] ranks and alphas.
///
/// A contribution is compared with the consensus, the most common value among all contributions. Of equally common
/// values, it is the one of the client whose name sorts first.
///
/// # Errors
/// [`Error::NoContributions`]; [`Error::Contributions`] names every contribution that fails.
pub fn check(contributions: &[Contribution], ranks: RankPolicy) -> Result<()> {
    if contributions.is_empty() {
        return Err(Error::NoContributions);
    }
    let rejected = rejections(contributions, ranks, None)?;
    if rejected.is_empty() {
        return Ok(());
    }
    Err(Error::Contributions { total: contributions.len(), rejected })
}

/// All contributions that cannot be aggregated, with all of their problems; empty if all can. With `norm_factor`, an update
/// whose norm is above that many medians of the norms is a problem too, from three contributions on.
///
/// A coordinator may leave these out and go on with the others, after another call: the consensus may change.
///
/// # Errors
/// [`Error::Tensor`] and [`Error::Adapters`] if a tensor cannot be read.
pub fn rejections(
    contributions: &[Contribution],
    ranks: RankPolicy,
    norm_factor: Option<f64>,
) -> Result<Vec<RejectedContribution>> {
    let consensus = Consensus::of(contributions);
    let mut rejected = Vec::new();
    for contribution in contributions {
        let mut problems = own_problems(contribution, contributions)?;
        problems.extend(consensus.problems(contribution, ranks));
        rejected.push(RejectedContribution { client: contribution.client.clone(), problems });
    }
    if let Some(factor) = norm_factor.filter(|_| contributions.len() >= 3) {
        add_outliers(&mut rejected, contributions, factor)?;
    }
    rejected.retain(|contribution| !contribution.problems.is_empty());
    Ok(rejected)
}

/// Adds the outliers among the contributions without other problems, in whose norms nothing else is wrong.
fn add_outliers(rejected: &mut [RejectedContribution], contributions: &[Contribution], factor: f64) -> Result<()> {
    let mut norms = Vec::new();
    for (index, contribution) in contributions.iter().enumerate().filter(|(i, _)| rejected[*i].problems.is_empty()) {
        let norm = contribution.norm()?;
        norms.push((index, norm));
    }
    let median = lower_median(norms.iter().map(|(_, norm)| *norm).collect());
    for (index, norm) in norms {
        if norm > factor * median && median > 0.0 {
            rejected[index].problems.push(Problem::Outlier { norm, median, factor });
        }
    }
    Ok(())
}

/// Problems of a contribution that do not depend on the consensus.
fn own_problems(contribution: &Contribution, all: &[Contribution]) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    if contribution.client.trim().is_empty() {
        problems.push(Problem::NoName);
    } else if all.iter().filter(|other| other.client == contribution.client).count() > 1 {
        problems.push(Problem::Duplicate);
    }
    if !(contribution.weight.is_finite() && contribution.weight > 0.0) {
        problems.push(Problem::Weight { weight: contribution.weight });
    }
    if contribution.adapter.is_empty() {
        problems.push(Problem::Empty);
    }
    match element_type(&contribution.adapter) {
        None => problems.extend(overflow(&contribution.adapter)?),
        problem => problems.extend(problem),
    }
    Ok(problems)
}

/// The problem of the first tensor whose elements are not floating-point numbers.
fn element_type(adapter: &Adapter) -> Option<Problem> {
    adapter.iter().find_map(|(module, update)| {
        let (_, tensor) = update.tensors().find(|(_, tensor)| !is_averaged(tensor.dtype()))?;
        Some(Problem::ElementType { module: module.to_owned(), found: tensor.dtype().as_str().to_owned() })
    })
}

/// Whether values of this type can be averaged.
pub(crate) fn is_averaged(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
}

/// The largest value of a tensor and the largest norm of an update that are accepted. Activations stay below 1e5 and are
/// multiplied by an update and squared in the networks' norms: above this limit, squares come close to the end of f32 at
/// 3e38, and images are not finite. Trained values are below 1e3.
pub(crate) const LARGEST: f64 = 1e12;

/// The problem of an adapter with values that are NaN, infinite or above [`LARGEST`], or with such an update.
pub(crate) fn overflow(adapter: &Adapter) -> Result<Option<Problem>> {
    let mut not_finite = Vec::new();
    for (module, update) in adapter.iter() {
        if !update.is_finite().map_err(Error::adapters("checking updates"))? {
            not_finite.push(module);
        }
    }
    match not_finite.first() {
        Some(first) => Ok(Some(Problem::NotFinite { count: not_finite.len(), first: (*first).to_owned() })),
        None => match large_value(adapter)? {
            None => too_large(adapter),
            problem => Ok(problem),
        },
    }
}

/// The problem of a tensor with a value above [`LARGEST`], even if the update is small because another factor is.
fn large_value(adapter: &Adapter) -> Result<Option<Problem>> {
    for (module, update) in adapter.iter() {
        for (_, tensor) in update.tensors() {
            let value = largest_magnitude(tensor).map_err(Error::tensor("checking updates"))?;
            if value > LARGEST {
                return Ok(Some(Problem::LargeValue { value, module: module.to_owned() }));
            }
        }
    }
    Ok(None)
}

/// The problem of an update above [`LARGEST`] although its factors are not. Only the low-rank part is measured, since the
/// rest of a DoRA depends on the base's weights.
fn too_large(adapter: &Adapter) -> Result<Option<Problem>> {
    let norm_of = |(module, update): (_, &LayerUpdate)| Ok((module, update.low_rank().delta_norm()?));
    let norms: Vec<(&str, f64)> =
        adapter.iter().map(norm_of).collect::<Result<_, _>>().map_err(Error::adapters("measuring updates"))?;
    let norm = norms.iter().map(|(_, norm)| norm * norm).sum::<f64>().sqrt();
    let largest = norms.iter().max_by(|left, right| left.1.total_cmp(&right.1));
    let problem = |(module, _): &(&str, f64)| Problem::TooLarge { norm, module: (*module).to_owned() };
    Ok(largest.filter(|_| norm > LARGEST).map(problem))
}

/// By module, the number of outputs followed by the shape of the input.
type Sizes = BTreeMap<String, Vec<usize>>;

/// The most common base, module shapes, ranks and alphas of all contributions.
struct Consensus {
    sizes: Sizes,
    /// The most common fingerprint of the base for each version of fingerprints.
    bases: Vec<String>,
    kinds: BTreeMap<String, UpdateKind>,
    ranks: BTreeMap<String, usize>,
    alphas: BTreeMap<String, f64>,
}

impl Consensus {
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
            // Alphas are equal if their bits are equal.
            let alpha = most_common(of_module(module).into_iter().map(|update| update.alpha().to_bits()))?;
            Some((module.clone(), f64::from_bits(alpha)))
        });
        Self {
            bases: usual_bases(sorted.iter().filter_map(|contribution| contribution.base_fingerprint.as_deref())),
            kinds: kinds.collect(),
            ranks: ranks.collect(),
            alphas: alphas.collect(),
            sizes,
        }
    }

    /// Where a contribution differs from the consensus.
    fn problems(&self, contribution: &Contribution, ranks: RankPolicy) -> Vec<Problem> {
        let mut problems = Vec::new();
        problems.extend(self.other_base(contribution));
        if contribution.adapter.is_empty() {
            return problems;
        }
        let own = sizes(contribution);
        problems.extend(missing(&self.sizes, &own).map(|(count, first)| Problem::MissingModules { count, first }));
        problems.extend(missing(&own, &self.sizes).map(|(count, first)| Problem::UnknownModules { count, first }));
        problems.extend(self.first_shape(&own));
        problems.extend(self.first_kind(contribution));
        if ranks == RankPolicy::Uniform {
            problems.extend(self.first_rank(contribution));
            problems.extend(self.first_alpha(contribution));
        }
        problems
    }

    fn other_base(&self, contribution: &Contribution) -> Option<Problem> {
        let found = contribution.base_fingerprint.clone()?;
        let differs = |expected: &&String| !Fingerprint::parse(expected).agrees_with(Fingerprint::parse(&found));
        let expected = self.bases.iter().find(differs)?.clone();
        Some(Problem::Base { expected, found })
    }

    fn first_shape(&self, own: &Sizes) -> Option<Problem> {
        own.iter().find_map(|(module, found)| {
            let expected = self.sizes.get(module)?;
            (expected != found).then(|| Problem::Shape {
                module: module.clone(),
                expected: expected.clone(),
                found: found.clone(),
            })
        })
    }

    fn first_kind(&self, contribution: &Contribution) -> Option<Problem> {
        contribution.adapter.iter().find_map(|(module, update)| {
            let (expected, found) = (*self.kinds.get(module)?, update.kind());
            (expected != found).then(|| Problem::Kind { module: module.to_owned(), expected, found })
        })
    }

    fn first_rank(&self, contribution: &Contribution) -> Option<Problem> {
        contribution.adapter.iter().find_map(|(module, update)| {
            let (expected, found) = (*self.ranks.get(module)?, update.rank());
            (expected != found).then(|| Problem::Rank { module: module.to_owned(), expected, found })
        })
    }

    fn first_alpha(&self, contribution: &Contribution) -> Option<Problem> {
        contribution.adapter.iter().find_map(|(module, update)| {
            let (expected, found) = (*self.alphas.get(module)?, update.alpha());
            (expected != found).then(|| Problem::Alpha { module: module.to_owned(), expected, found })
        })
    }
}

/// The most common base for each version of fingerprints, since fingerprints of different versions cannot be compared.
/// In version 2 the part that all copies of a base have decides first, then the part that copies in bf16 lack.
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
    modules.map(|(module, update)| (module.to_owned(), update.weight_shape())).collect()
}

/// Number of expected modules that are absent, and the first of them.
fn missing(expected: &Sizes, found: &Sizes) -> Option<(usize, String)> {
    let absent: BTreeSet<_> = expected.keys().filter(|module| !found.contains_key(*module)).collect();
    absent.first().map(|first| (absent.len(), (*first).clone()))
}

/// The most common value; of equally common ones, the first.
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
