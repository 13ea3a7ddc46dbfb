//! Products with frozen weights that are packed once, for CPUs with 512-bit vectors.
//!
//! A weight `[out, taps, in]` is cut into *panels* of [`PANEL`] outputs. A panel is stored in the order in which the
//! inner loop reads it: tap, input channel, output. The left operand is a [`Field`]: pixels (or tokens) with contiguous
//! channels. A tap is then an offset, and no im2col matrix and no transposed copy of tokens is made. [`sweep`](sweep())
//! keeps the sums of a tile, up to six pixels by two panels, in registers over all taps and channels;
//! [`winograd`](winograd()) computes 3 × 3 windows with enough tiles to pay for the transforms. Both add in one fixed
//! order, so that bits do not depend on the number of threads.
//!
//! The gradient of the input is the same product with the taps reversed and the panels transposed. A large weight is
//! kept once and each panel is transposed when it is used; a small weight is kept transposed too.

mod element;
mod field;
mod output;
mod packed;
mod strip;
mod sweep;
mod vectors;
mod winograd;

use std::ops::Range;

pub(crate) use element::Element;
pub use field::{Field, Frame};
pub use output::{Order, Start};
pub use packed::{Direction, KEPT_TRANSPOSED, Packed};
pub use strip::{RoundedPairs, RoundedRows, multiply_in_cache, multiply_rounded};
pub use sweep::{Job, Window, sweep};
pub use vectors::{has_bf16_instructions, has_wide_vectors};
pub use winograd::{pays, winograd, winograd_bytes};

/// Outputs of a panel: two registers of sixteen f32.
pub(crate) const PANEL: usize = 32;
/// Panels multiplied at a time.
pub(crate) const PANELS: usize = 2;
/// Pixels multiplied at a time: 24 registers of sums and four of weights fit the 32 vector registers, and the addresses
/// of six pixels fit the 16 others.
pub(crate) const PIXELS: usize = 6;

/// Number of tasks that keeps every thread busy to the end.
fn wanted_tasks() -> usize {
    match rayon::current_num_threads() {
        1 => 1,
        threads => 4 * threads,
    }
}

/// Part `index` of the range `0..count` cut into `parts` parts, whose lengths differ by one at most.
fn share(count: usize, index: usize, parts: usize) -> Range<usize> {
    count * index / parts..count * (index + 1) / parts
}
