//! Robust rules, on the updates themselves: factors of one update may differ by any rotation, so a median of factors
//! would compare what cannot be compared.

use candle_core::{DType, Tensor};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors, Matrices};
use catelier_numerics::linalg::truncated_svd;

use super::fair::wide;
use super::product::{combined, mean_scale};
use super::{Aggregate, TargetRank, lora_of_module};
use crate::check::{RankPolicy, check};
use crate::contribution::{Contribution, shares};
use crate::error::{Error, Result};

/// The median of every element of the updates, cut to a rank; for an even number, the mean of the two in the middle.
/// Weights are not used.
///
/// **Tolerates** fewer than half of the contributions: before the cut every element lies between the smallest and the
/// largest honest value. The cut to a rank keeps this only up to its distance; `median:exact` cuts nothing.
///
/// **Source** arXiv 1803.01498, definition 1, applied to `scale * up * down`.
///
/// # Errors
/// As [`check`] with [`RankPolicy::Mixed`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn median(contributions: &[Contribution], rank: TargetRank) -> Result<Aggregate> {
    by_element("median", contributions, rank, &|values: &[f64]| {
        let half = values.len() / 2;
        if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
    })
}

/// The mean of every element of the updates without the `floor(cut * K)` smallest and largest values, cut to a rank.
/// `cut` is from 0 to below 0.5. Weights are not used.
///
/// **Tolerates** up to `floor(cut * K)` of `K` contributions, in the sense of [`median()`].
///
/// **Source** arXiv 1803.01498, definition 2.
///
/// # Errors
/// As [`median()`]; [`Error::Setting`] for the cut.
pub fn trimmed_mean(contributions: &[Contribution], cut: f64, rank: TargetRank) -> Result<Aggregate> {
    refuse_cut(cut)?;
    let dropped = (cut * contributions.len() as f64).floor() as usize;
    by_element("trimmed-mean", contributions, rank, &|values: &[f64]| {
        let kept = &values[dropped..values.len() - dropped];
        kept.iter().sum::<f64>() / kept.len() as f64
    })
}

pub(super) fn refuse_cut(cut: f64) -> Result<()> {
    if (0.0..0.5).contains(&cut) {
        return Ok(());
    }
    Err(Error::Setting { what: "cut of `trimmed-mean`", expected: "from 0 to below 0.5", found: cut })
}

/// The mean of the `K - poisoned - 2` updates nearest to their neighbours (multi-Krum), cut to the largest rank. The
/// score of an update is the sum of the squared distances to its `K - poisoned - 2` nearest others; equal scores are
/// chosen together. Weights are not used.
///
/// **Tolerates** `poisoned` of `K >= 2 poisoned + 3` contributions: if `D` is the largest distance between honest
/// updates, each chosen one is within `sqrt((K - poisoned - 2) / (K - 2 poisoned - 1)) D` of an honest one.
///
/// **Source** Krum, arXiv 1703.02757, sections 4 and 6; distances from the factors' Gram matrices, no update is formed.
///
/// # Errors
/// As [`check`] with [`RankPolicy::Mixed`]; [`Error::TooFew`]; [`Error::UnsupportedKind`] for adapters that are no
/// LoRA.
pub fn krum(contributions: &[Contribution], poisoned: usize) -> Result<Aggregate> {
    check(contributions, RankPolicy::Mixed)?;
    let (found, needed) = (contributions.len(), poisoned.saturating_mul(2).saturating_add(3));
    if found < needed {
        return Err(Error::TooFew { strategy: format!("krum:{poisoned}"), needed, found });
    }
    let sorted = shares(contributions);
    let distances = squared_distances(&inner_products("krum", &sorted)?);
    let neighbours = found - poisoned - 2;
    let scores: Vec<f64> = (0..found).map(|index| score(&distances[index], index, neighbours)).collect();
    let mut sorted_scores = scores.clone();
    sorted_scores.sort_by(f64::total_cmp);
    let highest = sorted_scores[neighbours - 1] * (1.0 + TIED);
    let chosen: Vec<_> =
        sorted.iter().zip(&scores).filter(|(_, score)| **score <= highest).map(|((c, _), _)| *c).collect();
    let share = 1.0 / chosen.len() as f64;
    let chosen: Vec<_> = chosen.into_iter().map(|contribution| (contribution, share)).collect();
    Aggregate::measured(combined("krum", &chosen, TargetRank::Largest, None)?, contributions)
}

/// Scores this close are equal up to the rounding of f32 factors. Two updates that are nearest to each other always
/// have equal ones if one neighbour counts.
const TIED: f64 = 1e-5;

/// Sum of the distances to the nearest others.
fn score(distances: &[f64], own: usize, neighbours: usize) -> f64 {
    let mut others: Vec<f64> =
        distances.iter().enumerate().filter(|(index, _)| *index != own).map(|(_, distance)| *distance).collect();
    others.sort_by(f64::total_cmp);
    others[..neighbours].iter().sum()
}

/// The geometric median of the updates, `argmin_v sum p_k ||v - update_k||`, cut to the largest rank.
///
/// **Tolerates** contributions with less than half of the weight: if those have the share `a`, the distance to any
/// point is at most `2 (1 - a) / (1 - 2a)` times the largest distance of an honest update from that point.
///
/// **Source** RFA, arXiv 1912.13445, by Weiszfeld's iterations, which need only inner products here; the paper stops
/// after 3 to 5, this one where no weight changes by more than 1e-10, or after 1000.
///
/// # Errors
/// As [`check`] with [`RankPolicy::Mixed`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn geometric_median(contributions: &[Contribution]) -> Result<Aggregate> {
    check(contributions, RankPolicy::Mixed)?;
    let sorted = shares(contributions);
    let inner = inner_products("geometric-median", &sorted)?;
    let weights = weiszfeld(&inner, &sorted.iter().map(|(_, share)| *share).collect::<Vec<_>>());
    let weighted: Vec<_> = sorted.iter().zip(weights).map(|((c, _), weight)| (*c, weight)).collect();
    Aggregate::measured(combined("geometric-median", &weighted, TargetRank::Largest, None)?, contributions)
}

const WEISZFELD_STEPS: usize = 1000;
const SETTLED: f64 = 1e-10;
/// Distances are not taken below this part of the largest norm, so that a point on a contribution has a finite weight.
const NEAREST: f64 = 1e-6;

/// The weights of the geometric median as a mixture of the points with these inner products.
fn weiszfeld(inner: &[Vec<f64>], shares: &[f64]) -> Vec<f64> {
    let largest = (0..shares.len()).map(|k| inner[k][k]).fold(0.0, f64::max).sqrt();
    let mut weights = shares.to_vec();
    for _ in 0..WEISZFELD_STEPS {
        let next = weiszfeld_step(inner, shares, &weights, (NEAREST * largest).max(f64::MIN_POSITIVE));
        let moved = weights.iter().zip(&next).map(|(old, new)| (old - new).abs()).fold(0.0, f64::max);
        weights = next;
        if moved < SETTLED {
            break;
        }
    }
    weights
}

fn weiszfeld_step(inner: &[Vec<f64>], shares: &[f64], weights: &[f64], nearest: f64) -> Vec<f64> {
    let with_all = |k: usize| weights.iter().zip(&inner[k]).map(|(weight, product)| weight * product).sum::<f64>();
    let square: f64 = weights.iter().enumerate().map(|(k, weight)| weight * with_all(k)).sum();
    let pulls: Vec<f64> = (0..shares.len())
        .map(|k| shares[k] / (square - 2.0 * with_all(k) + inner[k][k]).max(0.0).sqrt().max(nearest))
        .collect();
    let total: f64 = pulls.iter().sum();
    pulls.into_iter().map(|pull| pull / total).collect()
}

/// The mean of the updates, each first shortened to at most `factor` times the median of their norms, cut to the
/// largest rank. `factor` is above 0.
///
/// **Tolerates** fewer than half of the contributions, in that a poisoned one with the share `p` moves the mean by at
/// most `2 p factor` times the largest honest norm.
///
/// **Source** norm clipping of arXiv 1911.07963, section 3, with the median of the norms as its bound.
///
/// # Errors
/// As [`check`] with [`RankPolicy::Mixed`]; [`Error::Setting`] for the factor; [`Error::UnsupportedKind`] for adapters
/// that are no LoRA.
pub fn norm_bound(contributions: &[Contribution], factor: f64) -> Result<Aggregate> {
    refuse_factor(factor)?;
    check(contributions, RankPolicy::Mixed)?;
    let sorted = shares(contributions);
    let norms = sorted.iter().map(|(contribution, _)| contribution.norm()).collect::<Result<Vec<f64>>>()?;
    let bound = factor * lower_median(norms.clone());
    let shortened = |share: f64, norm: f64| if norm > bound { share * bound / norm } else { share };
    let terms: Vec<_> = sorted.iter().zip(norms).map(|((c, share), norm)| (*c, shortened(*share, norm))).collect();
    Aggregate::measured(combined("norm-bound", &terms, TargetRank::Largest, None)?, contributions)
}

pub(super) fn refuse_factor(factor: f64) -> Result<()> {
    if factor.is_finite() && factor > 0.0 {
        return Ok(());
    }
    Err(Error::Setting { what: "factor of `norm-bound`", expected: "finite and above 0", found: factor })
}

/// The median; the lower of the two in the middle, so that it is an honest norm's if fewer than half are poisoned
/// upwards.
pub(crate) fn lower_median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// `<update_i, update_j>` over all modules, from the factors.
fn inner_products(strategy: &'static str, shares: &[(&Contribution, f64)]) -> Result<Vec<Vec<f64>>> {
    let mut inner = vec![vec![0.0; shares.len()]; shares.len()];
    for (module, _) in shares[0].0.adapter.iter() {
        let terms = lora_of_module(strategy, shares, module)?;
        let wide =
            terms.iter().map(|(factors, _)| Ok((wide(factors)?, factors.scale()))).collect::<Result<Vec<_>>>()?;
        for i in 0..wide.len() {
            for j in 0..=i {
                let product = inner_product(&wide[i], &wide[j]).map_err(Error::tensor("comparing updates"))?;
                inner[i][j] += product;
                if i != j {
                    inner[j][i] += product;
                }
            }
        }
    }
    Ok(inner)
}

type Scaled = ((Tensor, Tensor), f64);

fn inner_product(
    ((up, down), scale): &Scaled,
    ((other_up, other_down), other_scale): &Scaled,
) -> candle_core::Result<f64> {
    let ups = up.t()?.matmul(other_up)?;
    let downs = down.matmul(&other_down.t()?)?;
    Ok(scale * other_scale * (ups * downs)?.sum_all()?.to_scalar::<f64>()?)
}

fn squared_distances(inner: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let distance = |i: usize, j: usize| (inner[i][i] - 2.0 * inner[i][j] + inner[j][j]).max(0.0);
    (0..inner.len()).map(|i| (0..inner.len()).map(|j| distance(i, j)).collect()).collect()
}

/// Rows of an update that are formed together for all contributions.
const ROWS: usize = 64;

/// A statistic of every element of the updates; `of` gets the values of all contributions in order of size.
fn by_element(
    strategy: &'static str,
    contributions: &[Contribution],
    rank: TargetRank,
    of: &dyn Fn(&[f64]) -> f64,
) -> Result<Aggregate> {
    super::product::refuse_targets(rank, None)?;
    check(contributions, RankPolicy::Mixed)?;
    let shares = shares(contributions);
    let average = |(module, _): (&str, &LayerUpdate)| {
        let terms = lora_of_module(strategy, &shares, module)?;
        Ok((module.to_owned(), element_factors(module, &terms, rank, of)?))
    };
    let adapter = contributions[0].adapter.iter().map(average).collect::<Result<Adapter>>()?;
    Aggregate::measured(adapter, contributions)
}

fn element_factors(
    module: &str,
    terms: &[(&LoraFactors, f64)],
    rank: TargetRank,
    of: &dyn Fn(&[f64]) -> f64,
) -> Result<LoraFactors> {
    let wide = terms.iter().map(|(factors, _)| Ok((wide(factors)?, factors.scale()))).collect::<Result<Vec<_>>>()?;
    let (out, inputs) = (wide[0].0.0.dims()[0], wide[0].0.1.dims()[1]);
    let mut values = Vec::with_capacity(out * inputs);
    for start in (0..out).step_by(ROWS) {
        let rows = wide.iter().map(|term| rows_of(term, start, ROWS.min(out - start)));
        let rows = rows.collect::<candle_core::Result<Vec<_>>>().map_err(Error::tensor("forming updates"))?;
        values.extend(statistics(&rows, of));
    }
    let dense = Tensor::from_vec(values, (out, inputs), terms[0].0.up.device());
    let uniform: Vec<_> = terms.iter().map(|(factors, _)| (*factors, 1.0 / terms.len() as f64)).collect();
    let largest = terms.iter().map(|(factors, _)| factors.rank()).max().unwrap_or(1);
    let rank = rank.of(largest, out.min(inputs));
    from_dense(module, &dense.map_err(Error::tensor("forming updates"))?, terms[0].0, rank, mean_scale(&uniform))
}

fn rows_of(((up, down), scale): &Scaled, start: usize, count: usize) -> candle_core::Result<Vec<f64>> {
    (up.narrow(0, start, count)?.matmul(down)? * *scale)?.flatten_all()?.to_vec1()
}

fn statistics(columns: &[Vec<f64>], of: &dyn Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut sorted = vec![0.0; columns.len()];
    let mut statistic = |element: usize| {
        sorted.iter_mut().zip(columns).for_each(|(value, column)| *value = column[element]);
        sorted.sort_by(f64::total_cmp);
        of(&sorted)
    };
    (0..columns[0].len()).map(&mut statistic).collect()
}

/// Factors of a dense update `[out, in]` cut to a rank, in the layout of `like`; `scale` is `alpha / rank`.
pub(super) fn from_dense(
    module: &str,
    dense: &Tensor,
    like: &LoraFactors,
    rank: usize,
    scale: f64,
) -> Result<LoraFactors> {
    let cut = truncated_svd(dense, rank).map_err(Error::numerics(format!("decomposing the update of `{module}`")))?;
    let share = scale.sqrt().recip();
    let scaled = |tensor: Tensor| {
        (tensor * share).and_then(|tensor| tensor.to_dtype(DType::F32)).map_err(Error::tensor("scaling factors"))
    };
    let matrices = Matrices { up: scaled(cut.up)?, down: scaled(cut.down)? };
    like.with_matrices(&matrices, scale * rank as f64).map_err(Error::adapters("cutting an update"))
}
