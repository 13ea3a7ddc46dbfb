//! The check of all contributions before any is used; the error names every contribution that fails.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use candle_core::DType;
use catelier_adapters::{Adapter, Fingerprint, LayerUpdate, UpdateKind};
use catelier_numerics::finite::largest_magnitude;

use crate::contribution::Contribution;
use crate::contributions::{Contributions, Member};
use crate::error::{Error, Problem, RejectedContribution, Result};
use crate::numbers::{is_positive, lower_median};
use crate::source::{ContributionHeader, ContributionSource, InMemory, ModuleHeader};

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
    Contributions::read(&InMemory::new(contributions))?.check(ranks)
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
    Ok(Contributions::read(&InMemory::new(contributions))?.rejections(ranks, norm_factor))
}

/// As [`rejections`], of contributions that were read.
pub(crate) fn rejections_of(
    contributions: &Contributions<'_>,
    ranks: RankPolicy,
    norm_factor: Option<f64>,
) -> Vec<RejectedContribution> {
    let members = contributions.members();
    let headers: Vec<&ContributionHeader> = contributions.iter().map(|(header, ..)| header).collect();
    let (consensus, twice) = (Consensus::of(&headers), named_twice(&headers));
    let mut rejected = Vec::with_capacity(members.len());
    for (member, header) in members.iter().zip(headers) {
        let mut problems = own_problems(member, header, &twice);
        problems.extend(consensus.problems(header, ranks));
        rejected.push(RejectedContribution { client: header.client.clone(), problems });
    }
    if let Some(factor) = norm_factor.filter(|_| members.len() >= 3) {
        add_outliers(&mut rejected, members, factor);
    }
    rejected.retain(|contribution| !contribution.problems.is_empty());
    rejected
}

/// Adds the outliers among the contributions without other problems, in whose norms nothing else is wrong.
fn add_outliers(rejected: &mut [RejectedContribution], members: &[Member], factor: f64) {
    let sound = members.iter().zip(rejected).filter(|(_, rejected)| rejected.problems.is_empty());
    let sound: Vec<_> = sound.map(|(member, rejected)| (member.scan.norm, rejected)).collect();
    let median = lower_median(sound.iter().map(|(norm, _)| *norm).collect());
    for (norm, rejected) in sound {
        if norm > factor * median && median > 0.0 {
            rejected.problems.push(Problem::Outlier { norm, median, factor });
        }
    }
}

/// Names that more than one contribution has.
fn named_twice<'h>(headers: &[&'h ContributionHeader]) -> BTreeSet<&'h str> {
    let mut seen = BTreeSet::new();
    headers.iter().map(|header| header.client.as_str()).filter(|client| !seen.insert(*client)).collect()
}

/// Problems of a contribution that do not depend on the consensus.
fn own_problems(member: &Member, header: &ContributionHeader, twice: &BTreeSet<&str>) -> Vec<Problem> {
    let mut problems = Vec::new();
    if header.client.trim().is_empty() {
        problems.push(Problem::NoName);
    } else if twice.contains(header.client.as_str()) {
        problems.push(Problem::Duplicate);
    }
    if !is_positive(member.weight) {
        problems.push(Problem::Weight { weight: member.weight });
    }
    if header.modules.is_empty() {
        problems.push(Problem::Empty);
    }
    problems.extend(member.scan.problem.clone());
    problems
}

/// The problem of the first tensor whose elements are not floating-point numbers.
fn element_type(header: &ContributionHeader) -> Option<Problem> {
    header.modules.iter().find_map(|(module, header)| {
        let (_, dtype, _) = header.tensors.iter().find(|(_, dtype, _)| !is_averaged(*dtype))?;
        Some(Problem::ElementType { module: module.clone(), found: dtype.as_str().to_owned() })
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

/// What the values of an adapter show, read once, module by module.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    /// Values that are not finite or above [`LARGEST`], or an update above it although its factors are not.
    pub(crate) problem: Option<Problem>,
    /// Frobenius norm of the low-rank part of the update; without a meaning where there is a problem.
    pub(crate) norm: f64,
}

impl Scan {
    /// Reads the contribution at this position of the source.
    pub(crate) fn of(source: &dyn ContributionSource, position: usize) -> Result<Self> {
        let header = &source.headers()[position];
        if let Some(problem) = element_type(header) {
            return Ok(Self { problem: Some(problem), norm: 0.0 });
        }
        let mut scanner = Scanner::default();
        for module in header.modules.keys() {
            if let Some(update) = source.update(position, module)? {
                scanner.add(module, &update)?;
            }
        }
        Ok(scanner.finish())
    }
}

/// The problem of an adapter with values that are NaN, infinite or above [`LARGEST`], or with such an update.
pub(crate) fn overflow(adapter: &Adapter) -> Result<Option<Problem>> {
    let mut scanner = Scanner::default();
    adapter.iter().try_for_each(|(module, update)| scanner.add(module, update))?;
    Ok(scanner.finish().problem)
}

/// What was found in the modules so far.
#[derive(Debug, Default)]
struct Scanner {
    /// Number of modules with values that are not finite, and the first of them.
    not_finite: Option<(usize, String)>,
    /// The first value above the limit, even if the update is small because another factor is.
    large: Option<Problem>,
    /// Sum of the squared norms.
    square: f64,
    /// The module with the largest norm. Only the low-rank part is measured, since the rest of a DoRA depends on the base's
    /// weights.
    largest: Option<(f64, String)>,
}

impl Scanner {
    fn add(&mut self, module: &str, update: &LayerUpdate) -> Result<()> {
        let mut is_finite = update.alpha().is_finite();
        for (_, tensor) in update.tensors() {
            let value = largest_magnitude(tensor).map_err(Error::tensor("checking updates"))?;
            is_finite &= value.is_finite();
            if value > LARGEST && self.large.is_none() {
                self.large = Some(Problem::LargeValue { value, module: module.to_owned() });
            }
        }
        if !is_finite {
            self.not_finite.get_or_insert_with(|| (0, module.to_owned())).0 += 1;
            return Ok(());
        }
        let norm = update.low_rank().delta_norm().map_err(Error::adapters("measuring updates"))?;
        self.square += norm * norm;
        if self.largest.as_ref().is_none_or(|(largest, _)| norm >= *largest) {
            self.largest = Some((norm, module.to_owned()));
        }
        Ok(())
    }

    fn finish(self) -> Scan {
        let norm = self.square.sqrt();
        let not_finite = self.not_finite.map(|(count, first)| Problem::NotFinite { count, first });
        let too_large = self.largest.filter(|_| norm > LARGEST).map(|(_, module)| Problem::TooLarge { norm, module });
        Scan { problem: not_finite.or(self.large).or(too_large), norm }
    }
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
    fn of(headers: &[&ContributionHeader]) -> Self {
        let mut sorted = headers.to_vec();
        sorted.sort_by(|left, right| left.client.cmp(&right.client));
        let full: Vec<&ContributionHeader> = sorted.iter().copied().filter(|c| !c.modules.is_empty()).collect();
        let sizes = most_common(full.iter().map(|header| sizes(header))).unwrap_or_default();
        let (mut kinds, mut ranks, mut alphas) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for module in sizes.keys() {
            let of_module = || full.iter().filter_map(|header| header.modules.get(module));
            kinds.extend(most_common(of_module().map(ModuleHeader::kind)).map(|kind| (module.clone(), kind)));
            ranks.extend(most_common(of_module().map(ModuleHeader::rank)).map(|rank| (module.clone(), rank)));
            // Alphas are equal if their bits are equal.
            let alpha = most_common(of_module().map(|header| header.alpha.to_bits())).map(f64::from_bits);
            alphas.extend(alpha.map(|alpha| (module.clone(), alpha)));
        }
        let bases = usual_bases(sorted.iter().filter_map(|header| header.base_fingerprint.as_deref()));
        Self { sizes, bases, kinds, ranks, alphas }
    }

    /// Where a contribution differs from the consensus.
    fn problems(&self, header: &ContributionHeader, ranks: RankPolicy) -> Vec<Problem> {
        let mut problems = Vec::new();
        problems.extend(self.other_base(header));
        if header.modules.is_empty() {
            return problems;
        }
        let own = sizes(header);
        problems.extend(missing(&self.sizes, &own).map(|(count, first)| Problem::MissingModules { count, first }));
        problems.extend(missing(&own, &self.sizes).map(|(count, first)| Problem::UnknownModules { count, first }));
        problems.extend(self.first_shape(&own));
        problems.extend(self.first_kind(header));
        if ranks == RankPolicy::Uniform {
            problems.extend(self.first_rank(header));
            problems.extend(self.first_alpha(header));
        }
        problems
    }

    fn other_base(&self, header: &ContributionHeader) -> Option<Problem> {
        let found = header.base_fingerprint.clone()?;
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

    fn first_kind(&self, header: &ContributionHeader) -> Option<Problem> {
        header.modules.iter().find_map(|(module, own)| {
            let (expected, found) = (*self.kinds.get(module)?, own.kind());
            (expected != found).then(|| Problem::Kind { module: module.clone(), expected, found })
        })
    }

    fn first_rank(&self, header: &ContributionHeader) -> Option<Problem> {
        header.modules.iter().find_map(|(module, own)| {
            let (expected, found) = (*self.ranks.get(module)?, own.rank());
            (expected != found).then(|| Problem::Rank { module: module.clone(), expected, found })
        })
    }

    fn first_alpha(&self, header: &ContributionHeader) -> Option<Problem> {
        header.modules.iter().find_map(|(module, own)| {
            let (expected, found) = (*self.alphas.get(module)?, own.alpha);
            (expected != found).then(|| Problem::Alpha { module: module.clone(), expected, found })
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

fn sizes(header: &ContributionHeader) -> Sizes {
    header.modules.iter().map(|(module, header)| (module.clone(), header.weight_shape())).collect()
}

/// Number of expected modules that are absent, and the first of them.
fn missing(expected: &Sizes, found: &Sizes) -> Option<(usize, String)> {
    let absent: BTreeSet<_> = expected.keys().filter(|module| !found.contains_key(*module)).collect();
    absent.first().map(|first| (absent.len(), (*first).clone()))
}

/// The most common value; of equally common ones, the first.
fn most_common<T: Eq + Hash>(values: impl Iterator<Item = T>) -> Option<T> {
    // How often each value was met, and where first.
    let mut counts: HashMap<T, (usize, usize)> = HashMap::new();
    for (place, value) in values.enumerate() {
        counts.entry(value).or_insert((0, place)).0 += 1;
    }
    let usual = counts.into_iter().max_by_key(|(_, (count, place))| (*count, std::cmp::Reverse(*place)));
    usual.map(|(value, _)| value)
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
