//! Fits a training run into memory: its estimated peak, and the blocks to recompute.

mod footprint;

use std::collections::BTreeSet;

use candle_core::DType;
use catelier_numerics::ops;

pub use footprint::{BlockFootprint, Footprint, StepSizes};

use crate::models::Recompute;
use crate::models::base::BaseConfig;

/// The memory of a training run, and the blocks that are recomputed to fit it into the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The blocks and layers that are recomputed in the backward pass.
    pub recompute: Recompute,
    /// Estimated peak of the process's memory while it trains, in bytes.
    pub peak: u64,
    /// Bytes of the frozen weights, part of `peak`.
    pub weights: u64,
    /// Module paths of the recomputed blocks, in the order of the forward pass.
    pub recomputed: Vec<String>,
    /// Number of blocks that can be recomputed.
    pub blocks: usize,
    /// Operations that recomputation adds to every backward pass.
    pub extra_flops: u64,
}

/// The run does not fit even with every block recomputed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("training needs about {} of memory even when nothing is kept that can be recomputed, and the limit is {}", Bytes(*.needed), Bytes(*.limit))]
pub struct DoesNotFit {
    /// Bytes needed with every block recomputed.
    pub needed: u64,
    /// Bytes allowed.
    pub limit: u64,
}

/// A number of bytes, displayed in the unit that suits it.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            ..1_000_000_000 => write!(out, "{:.0} MB", bytes / 1e6),
            _ => write!(out, "{:.1} GB", bytes / 1e9),
        }
    }
}

/// Bytes of the program itself.
const PROGRAM: u64 = 64 << 20;
/// Loading leaves holes in the allocator's memory: per cent of the weights' size, as measured.
const HOLES_PERCENT: u64 = 6;

impl MemoryPlan {
    /// Recomputes as few blocks as it takes to fit into `limit` bytes, in the order of bytes saved per operation;
    /// `None` recomputes no block. `weights` are the bytes of the frozen weights.
    ///
    /// # Errors
    /// [`DoesNotFit`] if the run does not fit with every block recomputed.
    pub fn fit(footprint: &Footprint, weights: u64, limit: Option<u64>) -> Result<Self, DoesNotFit> {
        let mut plan = Self::keeping(footprint, weights, &BTreeSet::new());
        let Some(limit) = limit else {
            return Ok(plan);
        };
        // Recomputing every block would repeat the whole forward pass; most runs fit after a few blocks.
        let mut cheapest: Vec<&BlockFootprint> = footprint.blocks.iter().collect();
        cheapest.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
        let mut recomputed = BTreeSet::new();
        for block in cheapest {
            if plan.peak <= limit {
                break;
            }
            recomputed.insert(block.path.clone());
            plan = Self::keeping(footprint, weights, &recomputed);
        }
        if plan.peak > limit { Err(DoesNotFit { needed: plan.peak, limit }) } else { Ok(plan) }
    }

    /// The plan that recomputes every block.
    pub fn recomputing_all(footprint: &Footprint, weights: u64) -> Self {
        let all = footprint.blocks.iter().map(|block| block.path.clone()).collect();
        Self { recompute: Recompute::All, ..Self::keeping(footprint, weights, &all) }
    }

    /// The plan with `bytes` added for other work, before or between the steps.
    #[must_use]
    pub fn beside(self, bytes: u64) -> Self {
        Self { peak: self.peak.max(held_with(self.weights) + bytes), ..self }
    }

    /// The plan that recomputes the blocks at `paths` and keeps all others.
    fn keeping(footprint: &Footprint, weights: u64, paths: &BTreeSet<String>) -> Self {
        let Footprint { between, passing, adapter, blocks, .. } = footprint;
        let (recomputed, kept): (Vec<_>, Vec<_>) = blocks.iter().partition(|block| paths.contains(&block.path));
        let kept =
            kept.iter().map(|block| block.inside).chain(recomputed.iter().map(|block| block.packed)).sum::<u64>();
        let largest = recomputed.iter().map(|block| block.recomputing).max().unwrap_or(0);
        Self {
            peak: held_with(weights) + between + passing + adapter + kept + largest,
            weights,
            extra_flops: recomputed.iter().map(|block| block.flops).sum(),
            recomputed: recomputed.iter().map(|block| block.path.clone()).collect(),
            blocks: blocks.len(),
            recompute: if recomputed.is_empty() { Recompute::Nothing } else { Recompute::Blocks(paths.clone()) },
        }
    }
}

/// Bytes of the program and its weights.
fn held_with(weights: u64) -> u64 {
    PROGRAM + weights + weights * HOLES_PERCENT / 100
}

/// Bytes saved per operation of recomputing the block.
fn worth(block: &BlockFootprint) -> f64 {
    block.inside.saturating_sub(block.packed) as f64 / block.flops.max(1) as f64
}

/// Bytes of the frozen weights of the autoencoder and the text encoders, loaded as `dtype` on the CPU.
pub fn weight_bytes(base: &BaseConfig, dtype: DType) -> u64 {
    let elements = |shape: &Vec<usize>| shape.iter().product::<usize>() as u64;
    let shapes = base.tensor_shapes_beside_the_unet();
    shapes.iter().map(|shape| ops::weight_bytes(elements(shape), dtype)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footprint() -> Footprint {
        let block = |path: &str, inside, flops| BlockFootprint {
            path: path.into(),
            inside,
            packed: 0,
            recomputing: inside,
            flops,
        };
        let blocks = vec![block("cheap", 100, 10), block("dear", 100, 1000), block("small", 1, 1)];
        Footprint { between: 10, passing: 5, adapter: 1, blocks, forward_flops: 0, weights: 0 }
    }

    fn fit(room: u64) -> Result<MemoryPlan, DoesNotFit> {
        MemoryPlan::fit(&footprint(), 1000, Some(PROGRAM + 1076 + room))
    }

    #[test]
    fn what_fits_is_kept() {
        let plan = fit(201).unwrap();
        assert_eq!(
            (plan.recompute, plan.recomputed, plan.blocks, plan.extra_flops),
            (Recompute::Nothing, vec![], 3, 0)
        );
        assert_eq!(MemoryPlan::fit(&footprint(), 1000, None).unwrap().peak, plan.peak);
    }

    #[test]
    fn the_cheapest_block_is_recomputed_first() {
        let two_equal = |mut footprint: Footprint| {
            let other = BlockFootprint { path: "other".into(), inside: 100, packed: 0, recomputing: 100, flops: 20 };
            footprint.blocks.push(other);
            footprint
        };
        let footprint = two_equal(footprint());
        let plan = MemoryPlan::fit(&footprint, 1000, Some(PROGRAM + 1076 + 301 - 100)).unwrap();
        assert_eq!(plan.recompute, Recompute::Blocks(["cheap".into(), "other".into()].into()));
        assert_eq!((plan.recomputed, plan.extra_flops), (vec!["cheap".into(), "other".into()], 30));
    }

    #[test]
    fn what_cannot_fit_says_what_it_needs() {
        let refused = fit(50).unwrap_err();
        assert_eq!(refused.needed, PROGRAM + 1076 + 100);
        assert!(refused.to_string().contains("MB"), "{refused}");
    }

    #[test]
    fn a_lower_limit_never_keeps_more() {
        let peaks: Vec<u64> = (100..=201).filter_map(|room| fit(room).ok()).map(|plan| plan.peak).collect();
        assert!(peaks.is_sorted() && peaks.len() > 50);
    }
}
