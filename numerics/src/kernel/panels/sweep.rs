//! A window over a field, one panel of outputs at a time.

use std::cell::UnsafeCell;
use std::ops::Range;

use rayon::prelude::*;

use super::element::{Tile, Walk};
use super::packed::Panel;
use super::{Element, Field, PANEL, PANELS, PIXELS, Packed};
use crate::work::count_product;

/// Which pixels each result sums over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Height and width in taps.
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: usize,
    /// Height and width of the result.
    pub(crate) output: (usize, usize),
}

impl Window {
    /// Every pixel by itself, for tokens.
    pub(crate) fn single(rows: usize) -> Self {
        Self { kernel: (1, 1), stride: 1, output: (1, rows) }
    }
}

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

/// The weight as it is, or turned around for the gradient of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

/// `y = start + Σ taps weight · field`.
pub(crate) fn sweep<E: Element>(
    field: &Field<'_, E>,
    window: Window,
    weight: &Packed<E>,
    direction: Direction,
    start: Start<'_, f32>,
    order: Order,
) -> Vec<f32> {
    let channels = match direction {
        Direction::Forward => weight.out_channels(),
        Direction::Backward => weight.in_channels(),
    };
    let pixels = field.batch * window.output.0 * window.output.1;
    if pixels * channels == 0 {
        return Vec::new();
    }
    let inner = weight.out_channels() * weight.in_channels() / channels;
    count_product(pixels, channels, inner * window.kernel.0 * window.kernel.1);
    let work = Work::new(field, window, channels, start, order);
    let results = Results::of(pixels * channels);
    let panels = match direction {
        Direction::Forward => Panels::Kept(weight),
        Direction::Backward => Panels::turned(weight, work.rows_first()),
    };
    work.tasks().into_par_iter().for_each(|task| work.run(&task, &panels, &results));
    results.finish()
}

/// The panels of a weight or of its turned around self.
enum Panels<'a, E: Clone + 'static> {
    Kept(&'a Packed<E>),
    /// Made when they are used.
    Turning(&'a Packed<E>),
    /// Made before, because they are used several times.
    Turned(Vec<Panel<'a, E>>),
}

impl<'a, E: Element> Panels<'a, E> {
    fn turned(weight: &'a Packed<E>, often: bool) -> Self {
        match often {
            true => Self::Turned(
                (0..weight.in_channels().div_ceil(PANEL)).into_par_iter().map(|i| weight.turned_panel(i)).collect(),
            ),
            false => Self::Turning(weight),
        }
    }

    fn get(&self, index: usize) -> Panel<'_, E> {
        match self {
            Self::Kept(weight) => weight.panel(index),
            Self::Turning(weight) => weight.turned_panel(index),
            Self::Turned(panels) => panels[index].reborrow(),
        }
    }
}

/// Some tiles of some panels.
struct Task {
    panels: Range<usize>,
    tiles: Range<usize>,
}

/// One call, seen from its tasks.
struct Work<'a, E: Clone> {
    field: &'a Field<'a, E>,
    window: Window,
    taps: Vec<usize>,
    channels: usize,
    start: Start<'a, f32>,
    order: Order,
    /// Tiles that cut one line of the output, of equal width but for one.
    tiles_per_line: usize,
}

impl<'a, E: Element> Work<'a, E> {
    fn new(field: &'a Field<'a, E>, window: Window, channels: usize, start: Start<'a, f32>, order: Order) -> Self {
        let Window { kernel, stride, output } = window;
        assert!((output.0 - 1) * stride + kernel.0 <= field.size.0, "the window leaves the field below");
        assert!((output.1 - 1) * stride + kernel.1 <= field.size.1, "the window leaves the field on the right");
        assert_eq!(field.data.len(), field.batch * field.size.0 * field.size.1 * field.channels, "size of the field");
        let taps = (0..kernel.0).flat_map(|row| (0..kernel.1).map(move |column| (row, column)));
        let taps = taps.map(|(row, column)| (row * field.size.1 + column) * field.channels).collect();
        Self { field, window, taps, channels, start, order, tiles_per_line: output.1.div_ceil(PIXELS) }
    }

    fn area(&self) -> usize {
        self.window.output.0 * self.window.output.1
    }

    fn tiles(&self) -> usize {
        self.field.batch * self.window.output.0 * self.tiles_per_line
    }

    fn panels(&self) -> usize {
        self.channels.div_ceil(PANEL)
    }

    /// Panels that are multiplied together.
    fn pairs(&self) -> usize {
        self.panels().div_ceil(PANELS)
    }

    /// Elements of a panel.
    fn panel_len(&self) -> usize {
        self.taps.len() * self.field.channels * PANEL
    }

    /// Whether the field is cut into blocks that stay in the cache while all panels pass, or the panels stay while the
    /// whole field passes: whichever moves less through the cache.
    fn rows_first(&self) -> bool {
        let (field, weight) = (self.field.data.len(), self.panels() * self.panel_len());
        let blocks = self.tiles().div_ceil(self.block());
        blocks * weight < self.pairs() * field
    }

    /// Tiles whose pixels fill about a quarter of a mebibyte.
    fn block(&self) -> usize {
        let bytes = PIXELS * self.field.channels * size_of::<E>();
        ((256 << 10) / bytes).max(1)
    }

    /// A cut of all tiles of all panels that leaves every thread several tasks; panels are cut between pairs, of which an
    /// odd one is the last.
    fn tasks(&self) -> Vec<Task> {
        let (panels, pairs, tiles) = (self.panels(), self.pairs(), self.tiles());
        let threads = rayon::current_num_threads();
        let wanted = if threads == 1 { 1 } else { 4 * threads };
        let (groups, parts) = match self.rows_first() {
            true => {
                let parts = tiles.div_ceil(self.block());
                (wanted.div_ceil(parts).clamp(1, pairs), parts)
            }
            false => (pairs, wanted.div_ceil(pairs).clamp(1, tiles)),
        };
        let group = |group: usize| pairs * group / groups * PANELS..panels.min(pairs * (group + 1) / groups * PANELS);
        let part = |part: usize| tiles * part / parts..tiles * (part + 1) / parts;
        let tasks = (0..groups).flat_map(|g| (0..parts).map(move |p| (g, p)));
        tasks.map(|(g, p)| Task { panels: group(g), tiles: part(p) }).collect()
    }

    fn run(&self, task: &Task, panels: &Panels<'_, E>, results: &Results) {
        for index in task.panels.clone().step_by(PANELS) {
            let first = panels.get(index);
            let second = (index + 1 < task.panels.end).then(|| panels.get(index + 1));
            for tile in task.tiles.clone() {
                self.run_tile(tile, index, (&first, second.as_ref()), results);
            }
        }
    }

    /// One tile of panel `index`, and of the next if it is given.
    fn run_tile(&self, tile: usize, index: usize, panels: (&Panel<'_, E>, Option<&Panel<'_, E>>), results: &Results) {
        let mut sums: Tile = [[[0.0; PANEL]; PANELS]; PIXELS];
        let (line, within) = (tile / self.tiles_per_line, tile % self.tiles_per_line);
        let width = self.window.output.1;
        let columns = width * within / self.tiles_per_line..width * (within + 1) / self.tiles_per_line;
        match panels {
            (first, Some(second)) => self.multiply(line, &columns, [first, second], &mut sums),
            (first, None) => self.multiply(line, &columns, [first], &mut sums),
        }
        self.store((index, 0), line, &columns, &sums, results);
        if panels.1.is_some() {
            self.store((index + 1, 1), line, &columns, &sums, results);
        }
    }

    #[expect(unsafe_code, reason = "the tile kernels take pointers")]
    fn multiply<const P: usize>(
        &self,
        line: usize,
        columns: &Range<usize>,
        panels: [&Panel<'_, E>; P],
        sums: &mut Tile,
    ) {
        let Window { stride, output, .. } = self.window;
        let row = line / output.0 * self.field.size.0 + line % output.0 * stride;
        let start = (row * self.field.size.1 + columns.start * stride) * self.field.channels;
        let walk = Walk { pitch: stride * self.field.channels, taps: &self.taps, channels: self.field.channels };
        assert!(panels.iter().all(|panel| panel.len() == self.panel_len()), "size of the panels");
        let (x, panels) = (self.field.data[start..].as_ptr(), panels.map(Panel::as_ptr));
        // SAFETY: panels are only made where their instructions exist. The last pixel's last tap lies inside the field,
        // because `new` asserted that the window does for every output and that the field has its full size; the
        // panels' size was asserted above, and they are aligned.
        unsafe {
            match columns.len() {
                1 => E::tile::<1, P>(x, walk, panels, sums),
                2 => E::tile::<2, P>(x, walk, panels, sums),
                3 => E::tile::<3, P>(x, walk, panels, sums),
                4 => E::tile::<4, P>(x, walk, panels, sums),
                5 => E::tile::<5, P>(x, walk, panels, sums),
                _ => E::tile::<PIXELS, P>(x, walk, panels, sums),
            }
        }
    }

    /// Puts the sums of panel `index`, the one at `place` of the tile, where they belong, on top of what is there to start
    /// from.
    fn store(
        &self,
        (index, place): (usize, usize),
        line: usize,
        columns: &Range<usize>,
        sums: &Tile,
        results: &Results,
    ) {
        let first = index * PANEL;
        let outputs = PANEL.min(self.channels - first);
        let (sample, row) = (line / self.window.output.0, line % self.window.output.0);
        let bias = self.start.bias.map(|bias| &bias[first..][..outputs]);
        let shift = self.start.shift.map(|shift| &shift[sample * self.channels + first..][..outputs]);
        let residual = |at: usize, count: usize| self.start.residual.map(|residual| &residual[at..][..count]);
        match self.order {
            Order::Tokens => {
                for (sums, column) in sums.iter().zip(columns.clone()) {
                    let at = (line * self.window.output.1 + column) * self.channels + first;
                    let mut values = sums[place];
                    add(&mut values, bias);
                    add(&mut values, shift);
                    add(&mut values, residual(at, outputs));
                    results.write(at, values[..outputs].iter().copied());
                }
            }
            Order::Planes => {
                for output in 0..outputs {
                    let plane = (sample * self.channels + first + output) * self.area();
                    let at = plane + row * self.window.output.1 + columns.start;
                    let [bias, shift] = [bias, shift].map(|numbers| numbers.map_or(0.0, |numbers| numbers[output]));
                    let mut values = [0.0; PIXELS];
                    values.iter_mut().zip(sums).for_each(|(value, sums)| *value = sums[place][output] + bias + shift);
                    add(&mut values, residual(at, columns.len()));
                    results.write(at, values[..columns.len()].iter().copied());
                }
            }
        }
    }
}

fn add(values: &mut [f32], more: Option<&[f32]>) {
    values.iter_mut().zip(more.unwrap_or(&[])).for_each(|(value, more)| *value += more);
}

/// A result that several tasks write, each its own elements, and all of them every element once.
struct Results {
    data: UnsafeCell<Vec<f32>>,
    len: usize,
}

#[expect(unsafe_code, reason = "tasks write disjoint elements of one result")]
// SAFETY: `write` is only called for elements that belong to the calling task alone, and does not touch the vector.
unsafe impl Sync for Results {}

impl Results {
    /// Room for `len` elements: zeros that every task overwrites would cost another pass over memory.
    fn of(len: usize) -> Self {
        Self { data: UnsafeCell::new(Vec::with_capacity(len)), len }
    }

    /// Writes `values` from `at` on.
    #[expect(unsafe_code, reason = "tasks write disjoint elements of one result")]
    #[inline]
    fn write(&self, at: usize, values: impl ExactSizeIterator<Item = f32>) {
        assert!(at + values.len() <= self.len, "a result beyond its end");
        // SAFETY: reading where the vector's memory begins; no one moves it while tasks run.
        let start = unsafe { (*self.data.get()).as_ptr().cast_mut() };
        for (offset, value) in values.enumerate() {
            // SAFETY: within the capacity as asserted; each pair of panel and tile is one task's, so no one else writes
            // here.
            unsafe { start.add(at + offset).write(value) }
        }
    }

    #[expect(unsafe_code, reason = "every element has been written")]
    fn finish(self) -> Vec<f32> {
        let mut data = self.data.into_inner();
        // SAFETY: the tasks cover every tile of every panel, and `store` writes all outputs of a tile.
        unsafe { data.set_len(self.len) };
        data
    }
}
