//! The result of a packed product, and the values to which the product is added.

use std::cell::UnsafeCell;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Range;

use super::vectors::transpose;
use super::{Job, PANEL, Window};
use crate::transform::SIDE as TILE;

/// Layout of the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// `[batch, height, width, channels]`.
    Tokens,
    /// `[batch, channels, height, width]`.
    Planes,
}

/// The values to which a product is added, in the order of the fields.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a, T> {
    /// `[channels]`.
    pub bias: Option<&'a [T]>,
    /// `[batch, channels]`.
    pub shift: Option<&'a [T]>,
    /// In the shape and the layout of the result.
    pub residual: Option<&'a [T]>,
}

impl<T> Start<'_, T> {
    /// Nothing to add: the product alone.
    pub const ZERO: Self = Self { bias: None, shift: None, residual: None };
}

/// The result: `channels` values for each pixel of `size` (height, width).
pub(super) struct Output<'a> {
    channels: usize,
    size: (usize, usize),
    start: Start<'a, f32>,
    order: Order,
    results: Results,
}

impl<'a> Output<'a> {
    /// A result for `batch` samples, not yet written.
    pub(super) fn new(batch: usize, channels: usize, job: Job<'a>) -> Self {
        let Job { window: Window { output: size, .. }, start, order, .. } = job;
        Self { channels, size, start, order, results: Results::of(batch * size.0 * size.1 * channels) }
    }

    pub(super) fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Number of panels of outputs.
    pub(super) fn panels(&self) -> usize {
        self.channels.div_ceil(PANEL)
    }

    /// Writes the start values plus the sums of panel `panel`, for adjacent pixels of `line` (counted over all samples)
    /// from `column` on. Exactly one task must write every pixel of every panel.
    pub(super) fn write(&self, panel: usize, (line, column): (usize, usize), pixels: &[&[f32; PANEL]]) {
        let place = (line / self.size.0, line % self.size.0, column);
        match (self.order, pixels) {
            (Order::Tokens, _) => self.write_tokens(panel, place, pixels),
            (Order::Planes, &[a, b, c, d, e, f]) => self.write_runs(panel, place, [a, b, c, d, e, f]),
            (Order::Planes, &[a, b, c, d, e]) => self.write_runs(panel, place, [a, b, c, d, e]),
            (Order::Planes, &[a, b, c, d]) => self.write_runs(panel, place, [a, b, c, d]),
            (Order::Planes, _) => {
                for (offset, pixel) in pixels.iter().enumerate() {
                    self.write_runs(panel, (place.0, place.1, column + offset), [*pixel]);
                }
            }
        }
    }

    /// [`write`](Self::write), under the same rule, for a tile whose first result is at `row` and `column` of `sample`;
    /// pixels outside the result are left out.
    pub(super) fn write_tile(
        &self,
        panel: usize,
        (sample, row, column): (usize, usize, usize),
        tile: &[[[f32; PANEL]; TILE]; TILE],
    ) {
        let (height, width) = self.size;
        if self.order == Order::Planes && row + TILE <= height && column + TILE <= width {
            return self.write_whole_tile(panel, (sample, row, column), tile.as_flattened());
        }
        for (line, pixels) in tile.iter().enumerate().take(height - row) {
            let pixels = &pixels.each_ref()[..TILE.min(width - column)];
            self.write(panel, (sample * height + row + line, column), pixels);
        }
    }

    /// Writes a tile that lies inside the result, with pixels transposed into maps.
    #[expect(unsafe_code, reason = "vector instructions, where there are any")]
    fn write_whole_tile(&self, panel: usize, (sample, row, column): (usize, usize, usize), pixels: &[[f32; PANEL]]) {
        let (mut square, mut transposed) = ([[0.0; TILE * TILE]; TILE * TILE], [[0.0; TILE * TILE]; TILE * TILE]);
        for first in self.channels_of(panel).step_by(TILE * TILE) {
            for (row, pixel) in square.iter_mut().zip(pixels) {
                row.copy_from_slice(&pixel[first % PANEL..][..TILE * TILE]);
            }
            // SAFETY: results come from panels, and `Packed::new` has asserted that these instructions exist.
            unsafe { transpose(&square, &mut transposed) }
            for (channel, pixels) in (first..self.channels).zip(&transposed) {
                for (line, sums) in pixels.as_chunks::<TILE>().0.iter().enumerate() {
                    self.write_run(channel, (sample, row + line, column), *sums);
                }
            }
        }
    }

    fn channels_of(&self, panel: usize) -> Range<usize> {
        panel * PANEL..self.channels.min((panel + 1) * PANEL)
    }

    fn write_tokens(&self, panel: usize, (sample, row, column): (usize, usize, usize), pixels: &[&[f32; PANEL]]) {
        let channels = self.channels_of(panel);
        for (offset, sums) in pixels.iter().enumerate() {
            let place = (sample, (sample * self.size.0 + row) * self.size.1 + column + offset);
            if channels.len() == PANEL {
                self.write_token(place, channels.start, **sums);
            } else {
                channels.clone().zip(*sums).for_each(|(channel, sum)| self.write_token(place, channel, [*sum]));
            }
        }
    }

    /// Writes adjacent channels, from `first` on, of one pixel (counted over all samples).
    #[inline(always)]
    fn write_token<const N: usize>(&self, (sample, pixel): (usize, usize), first: usize, sums: [f32; N]) {
        let Start { bias, shift, residual } = self.start;
        let (at, mut values) = (pixel * self.channels + first, sums);
        add(&mut values, bias.map(|bias| &bias[first..][..N]));
        add(&mut values, shift.map(|shift| &shift[sample * self.channels + first..][..N]));
        add(&mut values, residual.map(|residual| &residual[at..][..N]));
        self.results.write(at, values);
    }

    /// Writes adjacent pixels of each output of a panel.
    #[inline(always)]
    fn write_runs<const N: usize>(&self, panel: usize, place: (usize, usize, usize), pixels: [&[f32; PANEL]; N]) {
        for (output, channel) in self.channels_of(panel).enumerate() {
            self.write_run(channel, place, pixels.map(|sums| sums[output]));
        }
    }

    /// Writes adjacent pixels of one channel's map.
    #[inline(always)]
    fn write_run<const N: usize>(&self, channel: usize, (sample, row, column): (usize, usize, usize), sums: [f32; N]) {
        let Start { bias, shift, residual } = self.start;
        let plane = sample * self.channels + channel;
        let at = (plane * self.size.0 + row) * self.size.1 + column;
        let bias = bias.map_or(0.0, |bias| bias[channel]);
        let shift = shift.map_or(0.0, |shift| shift[plane]);
        let mut values = sums.map(|sum| sum + bias + shift);
        add(&mut values, residual.map(|residual| &residual[at..][..N]));
        self.results.write(at, values);
    }

    /// The whole result. Every pixel of every panel must have been written.
    pub(super) fn finish(self) -> Vec<f32> {
        self.results.finish()
    }
}

#[inline(always)]
fn add(values: &mut [f32], more: Option<&[f32]>) {
    values.iter_mut().zip(more.unwrap_or(&[])).for_each(|(value, more)| *value += more);
}

/// Elements that tasks write in parallel: each element is written by exactly one task.
struct Results(Vec<Cell>);

#[repr(transparent)]
struct Cell(UnsafeCell<MaybeUninit<f32>>);

#[expect(unsafe_code, reason = "tasks write disjoint elements of one result")]
// SAFETY: only one task writes a cell, and nothing reads it before all tasks have ended.
unsafe impl Sync for Cell {}

impl Results {
    /// Room for `len` uninitialised elements: zeros would cost another pass over memory, and every element is
    /// overwritten.
    #[expect(unsafe_code, reason = "cells need not be initialised")]
    fn of(len: usize) -> Self {
        let mut cells = Vec::with_capacity(len);
        // SAFETY: within the capacity, and a cell may be uninitialised.
        unsafe { cells.set_len(len) };
        Self(cells)
    }

    /// Writes `values` from index `at` on.
    #[expect(unsafe_code, reason = "tasks write disjoint elements of one result")]
    #[inline(always)]
    fn write<const N: usize>(&self, at: usize, values: [f32; N]) {
        for (cell, value) in self.0[at..][..N].iter().zip(values) {
            // SAFETY: these cells belong to the calling task alone, as `Output::write` demands.
            unsafe { (*cell.0.get()).write(value) };
        }
    }

    #[expect(unsafe_code, reason = "every element has been written")]
    fn finish(self) -> Vec<f32> {
        let mut cells = ManuallyDrop::new(self.0);
        // SAFETY: a cell is an f32 with nothing around it, the vector is not dropped, and the tasks have written every
        // pixel of every panel, as `Output::write` demands.
        unsafe { Vec::from_raw_parts(cells.as_mut_ptr().cast(), cells.len(), cells.capacity()) }
    }
}
