//! Robust rules, on the updates themselves: factors of one update may differ by any rotation, so a median of factors
//! would compare what cannot be compared.

use std::cmp::Ordering;

use candle_core::Tensor;
use catelier_adapters::{Adapter, LoraFactors};
use rayon::prelude::*;

use super::dense::{FEW_RANKS, from_dense, layout, mean_scale, wide};
use super::product::combined;
use super::{Aggregate, TargetRank};
use crate::check::RankPolicy;
use crate::contributions::{Contributions, Shares};
use crate::error::{Error, Result};
use crate::numbers::{lower_median, positive};

/// The median of every element of the updates, cut to a rank; for an even number, the mean of the two in the middle.
/// Weights are not used.
///
/// **Tolerates** fewer than half of the contributions: before the cut every element lies between the smallest and the
/// largest honest value. The cut to a rank keeps this only up to its distance; `median:exact` cuts nothing.
///
/// **Source** arXiv 1803.01498, definition 1, applied to `scale * up * down`.
///
/// # Errors
/// As [`check`](crate::check()) with [`RankPolicy::Mixed`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn median(contributions: &Contributions<'_>, rank: TargetRank) -> Result<Aggregate> {
    by_element("median", contributions, rank, &|values: &mut [f64]| {
        let (half, is_even) = (values.len() / 2, values.len().is_multiple_of(2));
        let (lower, middle, _) = values.select_nth_unstable_by(half, f64::total_cmp);
        if is_even { (largest(lower) + *middle) / 2.0 } else { *middle }
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
pub fn trimmed_mean(contributions: &Contributions<'_>, cut: f64, rank: TargetRank) -> Result<Aggregate> {
    refuse_cut(cut)?;
    let dropped = (cut * contributions.len() as f64).floor() as usize;
    by_element("trimmed-mean", contributions, rank, &|values: &mut [f64]| {
        values.sort_unstable_by(f64::total_cmp);
        let kept = &values[dropped..values.len() - dropped];
        kept.iter().sum::<f64>() / kept.len() as f64
    })
}

/// The largest value of some.
fn largest(values: &[f64]) -> f64 {
    let larger = |one: f64, other: &f64| if other.total_cmp(&one) == Ordering::Greater { *other } else { one };
    values.iter().fold(f64::NEG_INFINITY, larger)
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
/// As [`check`](crate::check()) with [`RankPolicy::Mixed`]; [`Error::TooFew`]; [`Error::UnsupportedKind`] for adapters that are no
/// LoRA.
pub fn krum(contributions: &Contributions<'_>, poisoned: usize) -> Result<Aggregate> {
    contributions.check(RankPolicy::Mixed)?;
    let (found, needed) = (contributions.len(), poisoned.saturating_mul(2).saturating_add(3));
    if found < needed {
        return Err(Error::TooFew { strategy: format!("krum:{poisoned}"), needed, found });
    }
    let sorted = contributions.shares();
    let inner = inner_products("krum", contributions, &sorted)?;
    let neighbours = found - poisoned - 2;
    let scores: Vec<f64> = (0..found).into_par_iter().map(|own| score(&inner, own, neighbours)).collect();
    let mut sorted_scores = scores.clone();
    sorted_scores.sort_by(f64::total_cmp);
    let highest = sorted_scores[neighbours - 1] * (1.0 + TIED);
    let chosen: Vec<usize> = sorted
        .iter()
        .zip(&scores)
        .filter(|(_, score)| **score <= highest)
        .map(|((position, _), _)| *position)
        .collect();
    let share = 1.0 / chosen.len() as f64;
    let chosen: Shares = chosen.into_iter().map(|position| (position, share)).collect();
    cut_to_largest("krum", contributions, &chosen)
}

/// The sum of the updates with these factors, cut to the largest rank.
fn cut_to_largest(strategy: &'static str, contributions: &Contributions<'_>, factors: &Shares) -> Result<Aggregate> {
    let combined = combined(strategy, contributions, factors, TargetRank::Largest, None)?;
    Aggregate::measured(combined.adapter, contributions)
}

/// Scores this close are equal up to the rounding of f32 factors. Two updates that are nearest to each other always
/// have equal ones if one neighbour counts.
const TIED: f64 = 1e-5;

/// Sum of the squared distances to the nearest others.
fn score(inner: &[Vec<f64>], own: usize, neighbours: usize) -> f64 {
    let distance = |other: usize| (inner[own][own] - 2.0 * inner[own][other] + inner[other][other]).max(0.0);
    let mut others: Vec<f64> = (0..inner.len()).filter(|other| *other != own).map(distance).collect();
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
/// As [`check`](crate::check()) with [`RankPolicy::Mixed`]; [`Error::UnsupportedKind`] for adapters that are no LoRA.
pub fn geometric_median(contributions: &Contributions<'_>) -> Result<Aggregate> {
    contributions.check(RankPolicy::Mixed)?;
    let sorted = contributions.shares();
    let inner = inner_products("geometric-median", contributions, &sorted)?;
    let weights = weiszfeld(&inner, &sorted.iter().map(|(_, share)| *share).collect::<Vec<_>>());
    let weighted: Shares = sorted.iter().zip(weights).map(|((position, _), weight)| (*position, weight)).collect();
    cut_to_largest("geometric-median", contributions, &weighted)
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
/// As [`check`](crate::check()) with [`RankPolicy::Mixed`]; [`Error::Setting`] for the factor; [`Error::UnsupportedKind`] for adapters
/// that are no LoRA.
pub fn norm_bound(contributions: &Contributions<'_>, factor: f64) -> Result<Aggregate> {
    refuse_factor(factor)?;
    contributions.check(RankPolicy::Mixed)?;
    let norms = contributions.norms();
    let bound = factor * lower_median(norms.iter().map(|(_, norm)| *norm).collect());
    let shortened = |share: f64, norm: f64| if norm > bound { share * bound / norm } else { share };
    let shares = contributions.shares();
    let terms: Shares =
        shares.iter().zip(norms).map(|((position, share), (_, norm))| (*position, shortened(*share, norm))).collect();
    cut_to_largest("norm-bound", contributions, &terms)
}

pub(super) fn refuse_factor(factor: f64) -> Result<()> {
    positive("factor of `norm-bound`", factor)
}

/// Summed rank of the contributions that are compared with as many others together.
const COMPARED_RANKS: usize = 512;

/// `<update_i, update_j>` over all modules, from the factors.
fn inner_products(strategy: &'static str, contributions: &Contributions<'_>, shares: &Shares) -> Result<Vec<Vec<f64>>> {
    let mut inner = vec![vec![0.0; shares.len()]; shares.len()];
    for module in contributions.modules() {
        let mut wide = Vec::with_capacity(shares.len());
        contributions.each_lora(strategy, module, shares, |factors, _| {
            wide.push(Scaled::of(factors)?);
            Ok(())
        })?;
        let comparing = Error::tensor("comparing updates");
        match wide.iter().map(Scaled::rank).sum::<usize>() <= FEW_RANKS {
            true => add_pairs(&mut inner, &wide).map_err(comparing)?,
            false => add_blocks(&mut inner, &wide).map_err(comparing)?,
        }
    }
    for row in 1..inner.len() {
        let (above, below) = inner.split_at_mut(row);
        above.iter_mut().zip(&below[0]).for_each(|(mirrored, value)| mirrored[row] = *value);
    }
    Ok(inner)
}

/// The factors of an update in f64, and its scale.
struct Scaled {
    up: Tensor,
    down: Tensor,
    scale: f64,
}

impl Scaled {
    fn of(factors: &LoraFactors) -> Result<Self> {
        let (up, down) = wide(factors)?;
        Ok(Self { up, down, scale: factors.scale() })
    }

    fn rank(&self) -> usize {
        self.down.dims()[0]
    }

    /// Rows and columns of the update.
    fn block(&self, rows: (usize, usize), columns: (usize, usize)) -> candle_core::Result<Vec<f64>> {
        let (up, down) = (self.up.narrow(0, rows.0, rows.1)?, self.down.narrow(1, columns.0, columns.1)?);
        (up.matmul(&down)? * self.scale)?.flatten_all()?.to_vec1()
    }
}

/// Adds the products of each pair, in the lower triangle.
fn add_pairs(inner: &mut [Vec<f64>], updates: &[Scaled]) -> candle_core::Result<()> {
    for (i, one) in updates.iter().enumerate() {
        for (j, other) in updates[..=i].iter().enumerate() {
            let ups = one.up.t()?.matmul(&other.up)?;
            let downs = one.down.matmul(&other.down.t()?)?;
            inner[i][j] += one.scale * other.scale * (ups * downs)?.sum_all()?.to_scalar::<f64>()?;
        }
    }
    Ok(())
}

/// Some updates beside each other.
struct Block<'u> {
    /// Position of the first among all.
    start: usize,
    updates: &'u [Scaled],
    /// `[out, R]` for the summed rank `R`.
    up: Tensor,
    /// `[R, in]`.
    down: Tensor,
}

/// As [`add_pairs`], with the factors of many updates multiplied together.
fn add_blocks(inner: &mut [Vec<f64>], updates: &[Scaled]) -> candle_core::Result<()> {
    let largest = updates.iter().map(Scaled::rank).max().unwrap_or(1);
    let size = (COMPARED_RANKS / largest.max(1)).max(1);
    let block = |start: usize| Block::new(start, &updates[start..(start + size).min(updates.len())]);
    let add_row = |(place, rows): (usize, &mut [Vec<f64>])| {
        let own = block(place * size)?;
        (0..=place).try_for_each(|other| own.add_products(&block(other * size)?, rows))
    };
    let added: Vec<candle_core::Result<()>> = inner.par_chunks_mut(size).enumerate().map(add_row).collect();
    added.into_iter().collect()
}

impl<'u> Block<'u> {
    fn new(start: usize, updates: &'u [Scaled]) -> candle_core::Result<Self> {
        let ups: Vec<&Tensor> = updates.iter().map(|update| &update.up).collect();
        let downs: Vec<&Tensor> = updates.iter().map(|update| &update.down).collect();
        Ok(Self { start, updates, up: Tensor::cat(&ups, 1)?, down: Tensor::cat(&downs, 0)? })
    }

    /// Adds the products with the updates of another block to the rows of this one.
    fn add_products(&self, other: &Self, rows: &mut [Vec<f64>]) -> candle_core::Result<()> {
        let ups = self.up.t()?.matmul(&other.up)?;
        let products = (ups * self.down.matmul(&other.down.t()?)?)?.to_vec2::<f64>()?;
        let mut top = 0;
        for (i, one) in self.updates.iter().enumerate() {
            let mut left = 0;
            for (j, two) in other.updates.iter().enumerate() {
                let part =
                    products[top..top + one.rank()].iter().map(|row| row[left..left + two.rank()].iter().sum::<f64>());
                rows[i][other.start + j] += one.scale * two.scale * part.sum::<f64>();
                left += two.rank();
            }
            top += one.rank();
        }
        Ok(())
    }
}

/// Rows of an update that are formed together for all contributions.
const ROWS: usize = 64;

/// Most elements that are formed together, of all contributions: 64 MiB.
const ELEMENTS: usize = 8 << 20;

/// A statistic of every element of the updates; `of` gets the values of all contributions.
fn by_element(
    strategy: &'static str,
    contributions: &Contributions<'_>,
    rank: TargetRank,
    of: &(dyn Fn(&mut [f64]) -> f64 + Sync),
) -> Result<Aggregate> {
    super::product::refuse_targets(rank, None)?;
    contributions.check(RankPolicy::Mixed)?;
    contributions.refuse_other_kinds(strategy)?;
    let uniform = 1.0 / contributions.len() as f64;
    let shares: Shares = contributions.shares().into_iter().map(|(position, _)| (position, uniform)).collect();
    let average =
        |module: &str| Ok((module.to_owned(), element_factors(strategy, contributions, module, &shares, rank, of)?));
    Aggregate::measured(contributions.modules().map(average).collect::<Result<Adapter>>()?, contributions)
}

fn element_factors(
    strategy: &'static str,
    contributions: &Contributions<'_>,
    module: &str,
    shares: &Shares,
    rank: TargetRank,
    of: &(dyn Fn(&mut [f64]) -> f64 + Sync),
) -> Result<LoraFactors> {
    let mut updates = Vec::with_capacity(shares.len());
    contributions.each_lora(strategy, module, shares, |factors, _| {
        updates.push(Scaled::of(factors)?);
        Ok(())
    })?;
    let dense = statistics(&updates, of).map_err(Error::tensor("forming updates"))?;
    let headers = || contributions.headers_of(module, shares).map(|(header, _)| header);
    let largest = headers().map(crate::source::ModuleHeader::rank).max().unwrap_or(1);
    let side = headers().next().map_or(1, |header| header.sides().0.min(header.sides().1));
    let scale = mean_scale(contributions.headers_of(module, shares));
    from_dense(module, &dense, &layout(contributions, module, shares)?, rank.of(largest, side), scale)
}

/// A block of every update, formed by all threads.
fn formed(updates: &[Scaled], rows: (usize, usize), columns: (usize, usize)) -> candle_core::Result<Vec<Vec<f64>>> {
    let formed: Vec<candle_core::Result<Vec<f64>>> =
        updates.par_iter().map(|update| update.block(rows, columns)).collect();
    formed.into_iter().collect()
}

/// The statistic of every element as a matrix `[out, in]`, formed block by block.
fn statistics(updates: &[Scaled], of: &(dyn Fn(&mut [f64]) -> f64 + Sync)) -> candle_core::Result<Tensor> {
    let (out, inputs) = (updates[0].up.dims()[0], updates[0].down.dims()[1]);
    // All columns at a time, unless there are many contributions.
    let width = (ELEMENTS / (ROWS * updates.len())).clamp(1, inputs);
    let mut strips = Vec::new();
    for top in (0..out).step_by(ROWS) {
        let rows = (top, ROWS.min(out - top));
        let mut blocks = Vec::new();
        for left in (0..inputs).step_by(width) {
            let columns = (left, width.min(inputs - left));
            let values: Vec<Vec<f64>> = formed(updates, rows, columns)?;
            let statistics = (0..rows.1 * columns.1).into_par_iter().with_min_len(1 << 10);
            let statistics = statistics.map_init(
                || vec![0.0; values.len()],
                |own, element| {
                    own.iter_mut().zip(&values).for_each(|(value, update)| *value = update[element]);
                    of(own)
                },
            );
            blocks.push(Tensor::from_vec(
                statistics.collect::<Vec<f64>>(),
                (rows.1, columns.1),
                updates[0].up.device(),
            )?);
        }
        strips.push(Tensor::cat(&blocks, 1)?);
    }
    Tensor::cat(&strips, 0)
}
