//! Where results go, and what they are added to.

use std::cell::UnsafeCell;
use std::mem::{ManuallyDrop, MaybeUninit};

use super::PANEL;
use super::vectors::turn_small;
use super::winograd::SIDE as TILE;

/// How results lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[batch, height, width, channels]`.
    Tokens,
    /// `[batch, channels, height, width]`.
    Planes,
}

/// What a product is added to, in this order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start<'a, T> {
    /// One number for each channel of the result.
    pub(crate) bias: Option<&'a [T]>,
    /// `[batch, channels]`: one number for each channel of each sample.
    pub(crate) shift: Option<&'a [T]>,
    /// Numbers in the order of the result.
    pub(crate) residual: Option<&'a [T]>,
}

impl<T> Start<'_, T> {
    /// Nothing.
    pub(crate) const ZERO: Self = Self { bias: None, shift: None, residual: None };
}

/// A result of `channels` for each pixel of `size` (height, width).
pub(super) struct Output<'a> {
    channels: usize,
    size: (usize, usize),
    start: Start<'a, f32>,
    order: Order,
    results: Results,
}

impl<'a> Output<'a> {
    /// For `batch` samples; nothing is written yet.
    pub(super) fn new(
        batch: usize,
        channels: usize,
        size: (usize, usize),
        start: Start<'a, f32>,
        order: Order,
    ) -> Self {
        Self { channels, size, start, order, results: Results::of(batch * size.0 * size.1 * channels) }
    }

    pub(super) fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Panels of outputs.
    pub(super) fn panels(&self) -> usize {
        self.channels.div_ceil(PANEL)
    }

    /// Writes the sums of panel `panel` for neighbouring pixels of `line` (of all samples) from `column` on, on top of what
    /// is there to start from. Every pixel of every panel must be written by exactly one task.
    pub(super) fn write(&self, panel: usize, (line, column): (usize, usize), pixels: &[&[f32; PANEL]]) {
        let first = panel * PANEL;
        let outputs = PANEL.min(self.channels - first);
        let (sample, row) = (line / self.size.0, line % self.size.0);
        let bias = self.start.bias.map(|bias| &bias[first..][..outputs]);
        let shift = self.start.shift.map(|shift| &shift[sample * self.channels + first..][..outputs]);
        let residual = |at: usize, count: usize| self.start.residual.map(|residual| &residual[at..][..count]);
        match self.order {
            Order::Tokens => {
                for (offset, sums) in pixels.iter().enumerate() {
                    let at = (line * self.size.1 + column + offset) * self.channels + first;
                    let mut values = **sums;
                    [bias, shift, residual(at, outputs)].into_iter().for_each(|more| add(&mut values, more));
                    self.results.write(at, &values[..outputs]);
                }
            }
            Order::Planes => {
                let planes = Planes { first: sample * self.channels + first, outputs, at: row * self.size.1 + column };
                match *pixels {
                    [a, b, c, d, e, f] => self.write_planes(planes, &[a, b, c, d, e, f]),
                    [a, b, c, d, e] => self.write_planes(planes, &[a, b, c, d, e]),
                    [a, b, c, d] => self.write_planes(planes, &[a, b, c, d]),
                    _ => pixels.iter().enumerate().for_each(|(offset, pixel)| {
                        self.write_planes(Planes { at: planes.at + offset, ..planes }, &[*pixel]);
                    }),
                }
            }
        }
    }

    /// The same where each output is a map of its own.
    #[inline(always)]
    fn write_planes<const N: usize>(&self, planes: Planes, pixels: &[&[f32; PANEL]; N]) {
        let Start { bias, shift, residual } = self.start;
        for output in 0..planes.outputs {
            let plane = planes.first + output;
            let at = plane * self.size.0 * self.size.1 + planes.at;
            let bias = bias.map_or(0.0, |bias| bias[plane % self.channels]);
            let shift = shift.map_or(0.0, |shift| shift[plane]);
            let mut values = pixels.map(|sums| sums[output] + bias + shift);
            add(&mut values, residual.map(|residual| &residual[at..][..N]));
            self.results.write(at, &values);
        }
    }

    /// [`write`](Self::write), with the same duty, for a tile whose first result is at `row` and `column` of `sample`, as far as it
    /// is inside.
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

    /// Turns outputs that lie side by side into maps.
    #[expect(unsafe_code, reason = "vector instructions, where there are any")]
    fn write_whole_tile(&self, panel: usize, (sample, row, column): (usize, usize, usize), pixels: &[[f32; PANEL]]) {
        let Start { bias, shift, residual } = self.start;
        let (mut square, mut turned) = ([[0.0; TILE * TILE]; TILE * TILE], [[0.0; TILE * TILE]; TILE * TILE]);
        for first in (panel * PANEL..self.channels.min(panel * PANEL + PANEL)).step_by(TILE * TILE) {
            for (row, pixel) in square.iter_mut().zip(pixels) {
                row.copy_from_slice(&pixel[first % PANEL..][..TILE * TILE]);
            }
            // SAFETY: results of panels are only made where these instructions exist.
            unsafe { turn_small(&square, &mut turned) }
            for (channel, pixels) in (first..self.channels).zip(&turned) {
                let plane = sample * self.channels + channel;
                let bias = bias.map_or(0.0, |bias| bias[channel]);
                let shift = shift.map_or(0.0, |shift| shift[plane]);
                for (line, values) in pixels.as_chunks::<TILE>().0.iter().enumerate() {
                    let at = (plane * self.size.0 + row + line) * self.size.1 + column;
                    let mut values = values.map(|value| value + bias + shift);
                    add(&mut values, residual.map(|residual| &residual[at..][..TILE]));
                    self.results.write(at, &values);
                }
            }
        }
    }

    /// The whole result, once every pixel of every panel has been written.
    pub(super) fn finish(self) -> Vec<f32> {
        self.results.finish()
    }
}

/// Where neighbouring pixels of some outputs lie in their maps.
#[derive(Clone, Copy)]
struct Planes {
    /// The map of the first output.
    first: usize,
    outputs: usize,
    /// The first pixel in its map.
    at: usize,
}

fn add(values: &mut [f32], more: Option<&[f32]>) {
    values.iter_mut().zip(more.unwrap_or(&[])).for_each(|(value, more)| *value += more);
}

/// Numbers that several tasks write, each its own, and all of them every number once.
struct Results(Vec<Cell>);

#[repr(transparent)]
struct Cell(UnsafeCell<MaybeUninit<f32>>);

#[expect(unsafe_code, reason = "tasks write disjoint elements of one result")]
// SAFETY: a cell is only written by the one task that it belongs to, and not read before all tasks have ended.
unsafe impl Sync for Cell {}

impl Results {
    /// Room for `len` numbers: zeros that every task overwrites would cost another pass over memory.
    #[expect(unsafe_code, reason = "cells need not be initialised")]
    fn of(len: usize) -> Self {
        let mut cells = Vec::with_capacity(len);
        // SAFETY: within the capacity, and a cell may be uninitialised.
        unsafe { cells.set_len(len) };
        Self(cells)
    }

    /// Writes `values` from `at` on.
    #[expect(unsafe_code, reason = "tasks write disjoint elements of one result")]
    #[inline]
    fn write(&self, at: usize, values: &[f32]) {
        for (cell, value) in self.0[at..][..values.len()].iter().zip(values) {
            // SAFETY: these cells belong to the calling task alone, as `Output::write` demands.
            unsafe { (*cell.0.get()).write(*value) };
        }
    }

    #[expect(unsafe_code, reason = "every element has been written")]
    fn finish(self) -> Vec<f32> {
        let mut cells = ManuallyDrop::new(self.0);
        // SAFETY: a cell is a number with nothing around it, the vector is not dropped, and the tasks have written every
        // pixel of every panel, as `Output::write` demands.
        unsafe { Vec::from_raw_parts(cells.as_mut_ptr().cast(), cells.len(), cells.capacity()) }
    }
}
