//! Products with frozen weights that were packed once, for CPUs with 512-bit vectors.
//!
//! A weight `[out, taps, in]` is cut into *panels* of [`PANEL`] outputs, each stored in the order in which the inner
//! loop reads it: tap, input channel, output. The left operand is a [`Field`]: pixels (or tokens) with adjacent
//! channels, so that a tap is an offset and neither an im2col matrix nor a transposed copy of tokens is made. In a
//! [`sweep`](sweep()) a tile of up to six pixels by two panels stays in registers over the whole sum; 3 × 3 windows with enough
//! tiles to pay for it take the filtered way, [`winograd`](winograd()). Either adds in one fixed order: bits do not depend on the
//! number of threads.
//!
//! The gradient of the input is the same product with the weight's taps reversed and its panels transposed, one at a
//! time while they are used: a large weight is kept once. A small one is kept transposed too.

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

/// Outputs of a panel: two registers of sixteen elements.
pub(crate) const PANEL: usize = 32;
/// Panels multiplied at a time.
pub(crate) const PANELS: usize = 2;
/// Pixels multiplied at a time: with four registers of sums each and the panels' four they fit the 32 registers, and
/// their addresses the 16 others.
pub(crate) const PIXELS: usize = 6;

/// Tasks that keep every thread busy to the end.
fn wanted_tasks() -> usize {
    match rayon::current_num_threads() {
        1 => 1,
        threads => 4 * threads,
    }
}

/// The `index`th of `parts` shares of `count` things, which differ by one at most.
fn share(count: usize, index: usize, parts: usize) -> Range<usize> {
    count * index / parts..count * (index + 1) / parts
}
