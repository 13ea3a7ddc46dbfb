//! A window over a field, one pair of panels at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::element::{Tile, Walk, tile};
use super::output::Output;
use super::packed::{Panel, Panels};
use super::{Direction, Element, Field, Order, PANEL, PANELS, PIXELS, Packed, Start, share, wanted_tasks};
use crate::work::count_product;

/// The window of input pixels over which each result sums.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Height and width in taps.
    pub kernel: (usize, usize),
    /// Pixels from one window to the next, in both directions.
    pub stride: usize,
    /// Height and width of the result.
    pub output: (usize, usize),
}

impl Window {
    /// A window of one pixel, over `rows` tokens.
    pub fn single(rows: usize) -> Self {
        Self { kernel: (1, 1), stride: 1, output: (1, rows) }
    }
}

/// One product of a field with a weight.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The window of input pixels over which each result sums.
    pub window: Window,
    /// Whether the product uses the weight or its transpose.
    pub direction: Direction,
    /// The values to which the sums are added.
    pub start: Start<'a, f32>,
    /// Layout of the results.
    pub order: Order,
}

impl<'a> Job<'a> {
    /// A product with the weight, for the forward pass.
    pub fn forward(window: Window, start: Start<'a, f32>, order: Order) -> Self {
        Self { window, direction: Direction::Forward, start, order }
    }

    /// A product with the transposed weight, for the gradient of the input.
    pub fn backward(window: Window, order: Order) -> Self {
        Self { window, direction: Direction::Backward, start: Start::ZERO, order }
    }
}

/// `y = start + Σ taps weight · field`.
pub fn sweep<E: Element>(field: &Field<'_, E>, weight: &Packed<E>, job: Job<'_>) -> Vec<f32> {
    let (window, (channels, inner)) = (job.window, weight.sizes(job.direction));
    let pixels = field.batch * window.output.0 * window.output.1;
    if pixels * channels == 0 {
        return Vec::new();
    }
    count_product(pixels, channels, inner * window.kernel.0 * window.kernel.1);
    let output = Output::new(field.batch, channels, job);
    let work = Work::new(field, window, &output);
    let panels = Panels::of(weight, job.direction, work.rows_first());
    work.tasks().into_par_iter().for_each(|task| work.run(&task, &panels));
    output.finish()
}

/// A range of tiles of a range of panels.
struct Task {
    panels: Range<usize>,
    tiles: Range<usize>,
}

/// The shared data of all tasks of one call.
struct Work<'a, E: Clone> {
    field: &'a Field<'a, E>,
    window: Window,
    taps: Vec<usize>,
    output: &'a Output<'a>,
    /// Number of tiles in one line of the output; all but one have the same width.
    tiles_per_line: usize,
}

impl<'a, E: Element> Work<'a, E> {
    fn new(field: &'a Field<'a, E>, window: Window, output: &'a Output<'a>) -> Self {
        let Window { kernel, stride, output: size } = window;
        assert!((size.0 - 1) * stride + kernel.0 <= field.size.0, "the window leaves the field below");
        assert!((size.1 - 1) * stride + kernel.1 <= field.size.1, "the window leaves the field on the right");
        assert_eq!(field.data.len(), field.batch * field.size.0 * field.size.1 * field.channels, "size of the field");
        let taps = (0..kernel.0).flat_map(|row| (0..kernel.1).map(move |column| (row, column)));
        let taps = taps.map(|(row, column)| (row * field.size.1 + column) * field.channels).collect();
        Self { field, window, taps, output, tiles_per_line: size.1.div_ceil(PIXELS) }
    }

    fn tiles(&self) -> usize {
        self.field.batch * self.window.output.0 * self.tiles_per_line
    }

    /// Number of panel pairs; the panels of a pair are multiplied together.
    fn pairs(&self) -> usize {
        self.output.panels().div_ceil(PANELS)
    }

    /// Number of elements in a panel.
    fn panel_len(&self) -> usize {
        self.taps.len() * self.field.channels * PANEL
    }

    /// Whether to keep a block of the field in the cache while all panels pass over it, or to keep the panels while the
    /// whole field passes; the choice reads fewer elements.
    fn rows_first(&self) -> bool {
        let (field, weight) = (self.field.data.len(), self.output.panels() * self.panel_len());
        let blocks = self.tiles().div_ceil(self.block());
        blocks * weight < self.pairs() * field
    }

    /// Number of tiles whose pixels fill about 256 KiB.
    fn block(&self) -> usize {
        let bytes = PIXELS * self.field.channels * size_of::<E>();
        ((256 << 10) / bytes).max(1)
    }

    /// Cuts all tiles of all panels into several tasks for each thread. Cuts between panels lie between pairs; the last
    /// pair may be a single panel.
    fn tasks(&self) -> Vec<Task> {
        let (panels, pairs, tiles) = (self.output.panels(), self.pairs(), self.tiles());
        let wanted = wanted_tasks();
        let (groups, parts) = match self.rows_first() {
            true => {
                let parts = tiles.div_ceil(self.block());
                (wanted.div_ceil(parts).clamp(1, pairs), parts)
            }
            false => (pairs, wanted.div_ceil(pairs).clamp(1, tiles)),
        };
        let group = |group: usize| {
            let pairs = share(pairs, group, groups);
            pairs.start * PANELS..panels.min(pairs.end * PANELS)
        };
        let tasks = (0..groups).flat_map(|g| (0..parts).map(move |p| (g, p)));
        tasks.map(|(g, p)| Task { panels: group(g), tiles: share(tiles, p, parts) }).collect()
    }

    fn run(&self, task: &Task, panels: &Panels<'_, E>) {
        let mut sums: Tile = [[[0.0; PANEL]; PANELS]; PIXELS];
        for index in task.panels.clone().step_by(PANELS) {
            let first = panels.get(index);
            let second = (index + 1 < task.panels.end).then(|| panels.get(index + 1));
            for tile in task.tiles.clone() {
                self.run_tile(tile, index, (&first, second.as_ref()), &mut sums);
            }
        }
    }

    /// Computes one tile for one or two panels, starting at panel `index`.
    fn run_tile(&self, tile: usize, index: usize, panels: (&Panel<'_, E>, Option<&Panel<'_, E>>), sums: &mut Tile) {
        let (line, within) = (tile / self.tiles_per_line, tile % self.tiles_per_line);
        let columns = share(self.window.output.1, within, self.tiles_per_line);
        match panels {
            (first, Some(second)) => self.multiply(line, &columns, [first, second], sums),
            (first, None) => self.multiply(line, &columns, [first], sums),
        }
        for place in 0..1 + usize::from(panels.1.is_some()) {
            let pixels = sums.each_ref().map(|pixel| &pixel[place]);
            self.output.write(index + place, (line, columns.start), &pixels[..columns.len()]);
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
        let Field { channels, .. } = *self.field;
        let walk = Walk { pitch: stride * channels, taps: &self.taps, channels, add: false };
        assert!(panels.iter().all(|panel| panel.len() == self.panel_len()), "size of the panels");
        let (x, panels) = (self.field.data[start..].as_ptr(), panels.map(Panel::as_ptr));
        // SAFETY: the field and the panels were made where their instructions exist, as their constructors assert. The
        // last pixel's last tap lies inside the field, because `new` asserted that the window does for every output and
        // that the field has its full size; the panels' size was asserted above, and they are aligned.
        unsafe { tile::<E, P>(columns.len(), x, walk, panels, sums) }
    }
}
