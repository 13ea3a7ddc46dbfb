//! 3 × 3 convolutions with stride 1 in a quarter of the products: Winograd's F(4 × 4, 3 × 3).
//!
//! A tile of 4 × 4 results is `Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`, with the kernel `g` and the 6 × 6 input pixels `d` of the
//! tile. Over channels, `⊙` is one matrix product for each of 36 *places* (Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks", 2016, sections 4.1 and 4.3). Kernels are transformed while they are used: kept, they
//! would take four times the memory. All steps compute in f32, also for bf16 weights, because the transforms enlarge
//! the rounding errors made after them.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::element::{Tile, Walk, tile};
use super::output::Output;
use super::packed::{Block, Panel, Panels};
use super::{Element, Field, Job, PANEL, PANELS, PIXELS, Packed, Window, share, wanted_tasks};
use crate::transform::{LANES, Lanes, OfKernels, OfPixels, OfSums, PLACES, SIDE, SPAN, Transform};
use crate::vector::{Loop, Simd, vectorized};
use crate::work::count_product;

/// Channels summed at a time, so that their transformed kernels stay in the cache.
const DEPTH: usize = 64;
/// Bytes of transformed pixels and of their sums that one thread holds at a time; at least those of [`FEWEST`] tiles.
const BAND: usize = 8 << 20;
/// Fewest tiles in a band: with fewer, transforming all kernels would cost too much.
const FEWEST: usize = 64;

/// Whether [`winograd`] is faster than [`sweep`](super::sweep()) for this window: it must be 3 × 3 with stride 1, and
/// there must be enough tiles to pay for the transforms of the kernel. Only the size of one sample counts, so that a
/// sample's bits do not depend on the batch size.
pub fn pays<E: Element>(window: Window) -> bool {
    let (height, width) = window.output;
    let tiles = height.div_ceil(SIDE) * width.div_ceil(SIDE);
    let (products, transforms) = (PLACES * tiles, PLACES * 8);
    window.kernel == (3, 3) && window.stride == 1 && (products + transforms) * E::GROUP < 9 * height * width
}

/// `y = start + Σ taps weight · field`, for a window that [`pays`].
pub fn winograd<E: Element>(field: &Field<'_, f32>, weight: &Packed<E>, job: Job<'_>) -> Vec<f32> {
    winograd_in_bands(field, weight, job, band(field.channels))
}

/// Tiles transformed at a time, for `channels` input channels.
fn band(channels: usize) -> usize {
    (BAND / (size_of::<f32>() * PLACES * (channels + PANELS * PANEL))).max(FEWEST)
}

/// Estimate of the bytes that [`winograd`] allocates on `threads` threads for one map of `channels` channels and
/// `pixels` pixels, in addition to its field and its result.
pub fn winograd_bytes(channels: usize, pixels: usize, threads: usize) -> usize {
    let tiles = pixels.div_ceil(SIDE * SIDE).min(band(channels)).next_multiple_of(PIXELS);
    let per_thread = PANELS * PANEL * (tiles + kernel_pitch(channels));
    size_of::<f32>() * PLACES * (tiles * pitch(channels) + threads * per_thread)
}

/// Elements from one transformed tile to the next: one cache line more than the channels need. The number of channels
/// is often a multiple of a large power of two, and all places would then compete for the same lines of the cache.
fn pitch(channels: usize) -> usize {
    channels.next_multiple_of(LANES) + LANES
}

/// Channels from the kernels of one place to those of the next: odd, for the same reason.
fn kernel_pitch(channels: usize) -> usize {
    channels.min(DEPTH) | 1
}

/// [`winograd`] with bands of `tiles` tiles.
fn winograd_in_bands<E: Element>(field: &Field<'_, f32>, weight: &Packed<E>, job: Job<'_>, tiles: usize) -> Vec<f32> {
    let (window, (channels, inner)) = (job.window, weight.sizes(job.direction));
    if field.batch * window.output.0 * window.output.1 * channels == 0 {
        return Vec::new();
    }
    assert_eq!((window.kernel, window.stride, field.channels), ((3, 3), 1, inner), "a 3 × 3 window over the field");
    let (height, width) = (window.output.0 + SPAN - SIDE, window.output.1 + SPAN - SIDE);
    assert!(height <= field.size.0 && width <= field.size.1, "the window leaves the field");
    let output = Output::new(field.batch, channels, job);
    let grid = Grid::new(field, &output);
    count_product(PLACES * grid.tiles(), channels, inner);
    let bands = grid.bands(tiles);
    let panels = Panels::of(weight, job.direction, false);
    let mut spread = Box::new_uninit_slice(bands[0].len().div_ceil(PIXELS) * grid.group_len());
    for band in bands {
        grid.spread(&band, &mut spread);
        let work = Work { grid: &grid, band: &band, spread: &spread };
        work.tasks().into_par_iter().for_each_init(Scratch::default, |scratch, task| work.run(&task, &panels, scratch));
    }
    output.finish()
}

/// The tiles of an output, and the field that they read.
struct Grid<'a> {
    field: &'a Field<'a, f32>,
    output: &'a Output<'a>,
    /// Number of tiles of a sample, in height and width.
    size: (usize, usize),
}

impl<'a> Grid<'a> {
    fn new(field: &'a Field<'a, f32>, output: &'a Output<'a>) -> Self {
        let (height, width) = output.size();
        Self { field, output, size: (height.div_ceil(SIDE), width.div_ceil(SIDE)) }
    }

    fn tiles(&self) -> usize {
        self.field.batch * self.size.0 * self.size.1
    }

    /// Number of transformed elements of a group of [`PIXELS`] tiles: `[place, tile, channel]`.
    fn group_len(&self) -> usize {
        PLACES * PIXELS * pitch(self.field.channels)
    }

    /// All tiles in order, cut into bands of `tiles` tiles, rounded up to whole groups; the last band may be smaller.
    fn bands(&self, tiles: usize) -> Vec<Range<usize>> {
        let tiles = tiles.next_multiple_of(PIXELS);
        (0..self.tiles()).step_by(tiles).map(|first| first..self.tiles().min(first + tiles)).collect()
    }

    /// Sample, row and column of a tile's first result.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (line, column) = (tile / self.size.1, tile % self.size.1);
        (line / self.size.0, line % self.size.0 * SIDE, column * SIDE)
    }

    /// Transforms the pixels of a band; padding between the channels of tiles is not written.
    fn spread(&self, band: &Range<usize>, into: &mut [MaybeUninit<f32>]) {
        let groups = into.par_chunks_mut(self.group_len().max(1)).zip(band.clone().into_par_iter().step_by(PIXELS));
        groups.for_each(|(group, first)| {
            for tile in first..band.end.min(first + PIXELS) {
                let place = self.place(tile);
                let pixels = std::array::from_fn(|i| std::array::from_fn(|j| self.pixel(place, i, j)));
                let into = &mut group[(tile - first) * pitch(self.field.channels)..];
                vectorized::<Spread, _>((&pixels, self.group_len() / PLACES, into));
            }
        });
    }

    /// The channels of one input pixel of a tile; `None`, which means zeros, beyond the field.
    fn pixel(&self, (sample, row, column): (usize, usize, usize), below: usize, right: usize) -> Option<&'a [f32]> {
        let (row, column, (height, width)) = (row + below, column + right, self.field.size);
        let at = ((sample * height + row) * width + column) * self.field.channels;
        (row < height && column < width).then(|| &self.field.data[at..][..self.field.channels])
    }
}

type Pixels<'a> = [[Option<&'a [f32]>; SPAN]; SPAN];

/// Transforms the pixels of one tile; adjacent places lie a given number of elements apart.
struct Spread;

impl Loop<(&Pixels<'_>, usize, &mut [MaybeUninit<f32>])> for Spread {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(simd: S, (pixels, apart, into): (&Pixels<'_>, usize, &mut [MaybeUninit<f32>])) {
        let channels = pixels.as_flattened().iter().flatten().map(|pixel| pixel.len()).max().unwrap_or(0);
        for first in (0..channels).step_by(Lanes::<S>::COUNT) {
            OfPixels::square(
                simd,
                #[inline(always)]
                |row, column| match pixels[row][column] {
                    Some(pixel) => Lanes::load(simd, &pixel[first..]),
                    None => Lanes::zeros(simd),
                },
                #[inline(always)]
                |row, column, lanes| lanes.store_new(&mut into[(row * SPAN + column) * apart + first..]),
            );
        }
    }
}

/// A range of groups of tiles, for one pair of panels.
struct Task {
    pair: usize,
    groups: Range<usize>,
}

/// Memory of a task, reused by the next one.
#[derive(Default)]
struct Scratch {
    /// Transformed kernels: `[panel, place, channel, output]`.
    kernels: Vec<Block<f32>>,
    /// Products: `[group, place]`.
    sums: Vec<Tile>,
}

impl Scratch {
    /// Memory for kernels `kernel_pitch` channels apart and sums of `groups` groups of tiles; both may hold old values.
    fn sized(&mut self, kernel_pitch: usize, groups: usize) -> (&mut [Block<f32>], &mut [Tile]) {
        self.kernels.resize(PANELS * PLACES * kernel_pitch, Block([0.0; PANEL]));
        self.sums.resize(self.sums.len().max(groups * PLACES), [[[0.0; PANEL]; PANELS]; PIXELS]);
        (&mut self.kernels, &mut self.sums[..groups * PLACES])
    }
}

/// The shared data of all tasks of one band.
struct Work<'a> {
    grid: &'a Grid<'a>,
    band: &'a Range<usize>,
    spread: &'a [MaybeUninit<f32>],
}

impl Work<'_> {
    /// Cuts the band into several tasks for each thread.
    fn tasks(&self) -> Vec<Task> {
        let (groups, pairs) = (self.band.len().div_ceil(PIXELS), self.grid.output.panels().div_ceil(PANELS));
        let parts = wanted_tasks().div_ceil(pairs).clamp(1, (groups / (FEWEST / PIXELS)).max(1));
        (0..pairs).flat_map(|pair| (0..parts).map(move |p| Task { pair, groups: share(groups, p, parts) })).collect()
    }

    fn run<E: Element>(&self, task: &Task, panels: &Panels<'_, E>, scratch: &mut Scratch) {
        let first = task.pair * PANELS;
        match first + 1 < self.grid.output.panels() {
            true => self.run_panels(task, [panels.get(first), panels.get(first + 1)], scratch),
            false => self.run_panels(task, [panels.get(first)], scratch),
        }
    }

    fn run_panels<E: Element, const P: usize>(&self, task: &Task, panels: [Panel<'_, E>; P], scratch: &mut Scratch) {
        let channels = self.grid.field.channels;
        let (groups, (kernels, sums)) = (&task.groups, scratch.sized(kernel_pitch(channels), task.groups.len()));
        for start in (0..channels).step_by(DEPTH) {
            let depth = start..channels.min(start + DEPTH);
            for (panel, kernels) in panels.iter().zip(kernels.chunks_exact_mut(PLACES * kernel_pitch(channels))) {
                vectorized::<TransformKernels, _>((panel, channels, &depth, kernels));
            }
            for place in 0..PLACES {
                for (group, sums) in groups.clone().zip(sums.iter_mut().skip(place).step_by(PLACES)) {
                    self.multiply::<P>((place, group), &depth, kernels, sums);
                }
            }
        }
        for (group, sums) in groups.clone().zip(sums.as_chunks::<PLACES>().0) {
            self.write(task.pair * PANELS, P, group, sums);
        }
    }

    /// Number of tiles in a group; the last group may have fewer.
    fn tiles_in(&self, group: usize) -> usize {
        PIXELS.min(self.band.len() - group * PIXELS)
    }

    /// Adds the products of a range of channels at one place of a group of tiles.
    #[expect(unsafe_code, reason = "the tile kernels take pointers")]
    fn multiply<const P: usize>(
        &self,
        (place, group): (usize, usize),
        depth: &Range<usize>,
        kernels: &[Block<f32>],
        sums: &mut Tile,
    ) {
        let (pitch, tiles) = (pitch(self.grid.field.channels), self.tiles_in(group));
        let start = group * self.grid.group_len() + place * PIXELS * pitch + depth.start;
        let x = &self.spread[start..][..(tiles - 1) * pitch + depth.len()];
        let walk = Walk { pitch, taps: &[0], channels: depth.len(), add: depth.start > 0 };
        let kernels = std::array::from_fn::<_, P, _>(|panel| {
            kernels[(panel * PLACES + place) * kernel_pitch(self.grid.field.channels)..][..depth.len()].as_ptr().cast()
        });
        // SAFETY: the panels were made where the instructions for f32 exist, as `Packed::new` asserts; `x` reaches to
        // the last channel of the last tile, all of which `spread` has written, and the kernels, in aligned blocks of
        // one channel each, to the last channel.
        unsafe { tile::<f32, P>(tiles, x.as_ptr().cast(), walk, kernels, sums) }
    }

    /// Writes the results of a group of tiles, for `panels` panels from `first` on.
    fn write(&self, first: usize, panels: usize, group: usize, sums: &[Tile; PLACES]) {
        let mut results = [[[0.0; PANEL]; SIDE]; SIDE];
        for tile in 0..self.tiles_in(group) {
            let place = self.grid.place(self.band.start + group * PIXELS + tile);
            for panel in 0..panels {
                vectorized::<Gather, _>((sums, tile, panel, &mut results));
                self.grid.output.write_tile(first + panel, place, &results);
            }
        }
    }
}

/// Computes the results of one tile and panel from the sums at its places.
struct Gather;

impl Loop<(&[Tile; PLACES], usize, usize, &mut [[[f32; PANEL]; SIDE]; SIDE])> for Gather {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(
        simd: S,
        (sums, tile, panel, results): (&[Tile; PLACES], usize, usize, &mut [[[f32; PANEL]; SIDE]; SIDE]),
    ) {
        for first in (0..PANEL).step_by(Lanes::<S>::COUNT) {
            OfSums::square(
                simd,
                #[inline(always)]
                |row, column| Lanes::load_whole(simd, &sums[row * SPAN + column][tile][panel][first..]),
                #[inline(always)]
                |row, column, lanes| lanes.store(&mut results[row][column][first..]),
            );
        }
    }
}

/// Transforms the kernels of a range of channels of a panel: `[place, channel, output]`.
struct TransformKernels;

impl<E: Element> Loop<(&Panel<'_, E>, usize, &Range<usize>, &mut [Block<f32>])> for TransformKernels {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(
        simd: S,
        (panel, all, channels, kernels): (&Panel<'_, E>, usize, &Range<usize>, &mut [Block<f32>]),
    ) {
        let mut taps = [[0.0; PANEL]; 9];
        let (all, apart) = (all.next_multiple_of(E::GROUP), kernels.len() / PLACES);
        for channel in channels.clone() {
            for (tap, outputs) in taps.iter_mut().enumerate() {
                *outputs = panel.outputs(tap * all + channel);
            }
            let kernels = &mut kernels[channel - channels.start..];
            for first in (0..PANEL).step_by(Lanes::<S>::COUNT) {
                OfKernels::square(
                    simd,
                    #[inline(always)]
                    |row, column| Lanes::load_whole(simd, &taps[row * 3 + column][first..]),
                    #[inline(always)]
                    |row, column, lanes| lanes.store(&mut kernels[(row * SPAN + column) * apart].0[first..]),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::normals::normals;
    use crate::panels::Direction;
    use crate::{Frame, Order, Start, has_wide_vectors, sweep};

    /// A convolution of `batch` maps of `size`, with `channels` (in, out).
    #[derive(Debug, Clone, Copy)]
    struct Case {
        batch: usize,
        channels: (usize, usize),
        size: (usize, usize),
        padding: usize,
    }

    const CASES: [Case; 5] = [
        Case { batch: 1, channels: (1, 1), size: (4, 4), padding: 1 },
        Case { batch: 2, channels: (5, 33), size: (7, 9), padding: 1 },
        Case { batch: 1, channels: (70, 3), size: (5, 17), padding: 0 },
        Case { batch: 3, channels: (17, 65), size: (8, 6), padding: 2 },
        Case { batch: 1, channels: (130, 96), size: (6, 13), padding: 1 },
    ];

    fn cases() -> impl Strategy<Value = Case> {
        let sizes = ((1..3usize, 1..100usize, 1..100usize), (3..24usize, 3..24usize, 0..3usize));
        sizes.prop_map(|((batch, inputs, outputs), (height, width, padding))| Case {
            batch,
            channels: (inputs, outputs),
            size: (height, width),
            padding,
        })
    }

    impl Case {
        fn frame(self) -> Frame {
            let (margin, origin) = (2 * self.padding, self.padding as isize);
            Frame { size: (self.size.0 + margin, self.size.1 + margin), origin: (origin, origin), spread: 1 }
        }

        fn window(self) -> Window {
            let size = self.frame().size;
            Window { kernel: (3, 3), stride: 1, output: (size.0 - 2, size.1 - 2) }
        }
    }

    /// Largest difference between this convolution and [`sweep`](super::super::sweep()) with the same weight, divided
    /// by the typical size of a result.
    fn distance<E: Element + Into<f32>>(case: Case, direction: Direction, order: Order, tiles: usize) -> f32 {
        let (inputs, outputs) = case.channels;
        let weights = normals(0, outputs * 9 * inputs);
        let weight = Packed::<E>::new((outputs, 9, inputs), |index| weights[index]);
        // The rounded weight, multiplied in f32.
        let plain = Packed::<f32>::new((outputs, 9, inputs), |index| E::from_f32(weights[index]).into());
        let (channels, inner) = weight.sizes(direction);
        let x = normals(1, case.batch * inner * case.size.0 * case.size.1);
        let field = Field::planes(&x, inner, case.size, case.frame());
        let window = case.window();
        let area = window.output.0 * window.output.1;
        let [bias, shift, residual] =
            [channels, case.batch * channels, case.batch * channels * area].map(|count| normals(2, count));
        let start = Start { bias: Some(&bias), shift: Some(&shift), residual: Some(&residual) };
        let job = Job { window, direction, start, order };
        let found = winograd_in_bands(&field, &weight, job, tiles);
        let expected = sweep(&field, &plain, job);
        let largest = found.iter().zip(&expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        largest / (expected.iter().map(|y| y * y).sum::<f32>() / expected.len() as f32).sqrt()
    }

    /// The largest [`distance`] over both directions and layouts, for f32 and bf16 weights.
    fn largest_distance(case: Case, tiles: usize) -> f32 {
        let directions = [Direction::Forward, Direction::Backward].into_iter();
        let ways = directions.flat_map(|direction| [Order::Planes, Order::Tokens].map(|order| (direction, order)));
        let distances = ways.flat_map(|(direction, order)| {
            [distance::<f32>, distance::<bf16>].map(|distance| distance(case, direction, order, tiles))
        });
        distances.fold(0.0, f32::max)
    }

    #[test]
    fn it_is_the_plain_convolution_for_every_shape_order_and_direction() {
        if !has_wide_vectors() {
            return;
        }
        for (case, tiles) in CASES.into_iter().flat_map(|case| [1, 1000].map(|tiles| (case, tiles))) {
            let distance = largest_distance(case, tiles);
            assert!(distance < 2e-5, "{case:?} in bands of {tiles}: {distance}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_the_plain_convolution_for_shapes_nobody_would_choose(
            case in cases(),
            tiles in prop_oneof![Just(1usize), Just(7), Just(1000)],
        ) {
            if has_wide_vectors() {
                let distance = largest_distance(case, tiles);
                prop_assert!(distance < 3e-5, "{case:?} in bands of {tiles}: {distance}");
            }
        }
    }

    /// Root mean square errors of Winograd's method and of [`sweep`](super::super::sweep()), each divided by the root
    /// mean square of the f64 sums.
    fn typical_errors(case: Case) -> [f64; 2] {
        let ((inputs, outputs), (height, width)) = (case.channels, case.frame().size);
        let weights = normals(0, outputs * 9 * inputs);
        let weight = Packed::<f32>::new((outputs, 9, inputs), |index| weights[index]);
        let x = normals(1, inputs * case.size.0 * case.size.1);
        let field = Field::planes(&x, inputs, case.size, case.frame());
        let window = case.window();
        let exact = |output: usize, row: usize, column: usize| -> f64 {
            let taps = (0..9).map(|tap| (tap, (row + tap / 3) * width + column + tap % 3));
            let products = taps.flat_map(|(tap, pixel)| {
                let weights = &weights[(output * 9 + tap) * inputs..][..inputs];
                weights.iter().zip(&field.data[pixel * inputs..]).map(|(w, x)| f64::from(*w) * f64::from(*x))
            });
            products.sum()
        };
        let pixels = (0..height - 2).flat_map(|row| (0..width - 2).map(move |column| (row, column)));
        let sums: Vec<f64> =
            pixels.flat_map(|(row, column)| (0..outputs).map(move |output| exact(output, row, column))).collect();
        let typical = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let job = Job::forward(window, Start::ZERO, Order::Tokens);
        [winograd::<f32>, sweep::<f32>].map(|convolve| {
            let found = convolve(&field, &weight, job);
            let apart = typical(&mut found.iter().zip(&sums).map(|(found, sum)| f64::from(*found) - sum));
            apart / typical(&mut sums.iter().copied())
        })
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "the figures are for docs/precision.md")]
    fn it_rounds_hardly_more_than_the_plain_sum() {
        if !has_wide_vectors() {
            return;
        }
        for channels in [64, 320] {
            let [filtered, plain] =
                typical_errors(Case { batch: 1, channels: (channels, 32), size: (16, 16), padding: 1 });
            println!("{channels} channels: {filtered:.1e} of a typical result, {plain:.1e} for the sum tap by tap");
            assert!(filtered < 3.0 * plain, "{filtered} of {plain}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads_or_on_other_samples() {
        if !has_wide_vectors() {
            return;
        }
        let (inputs, outputs, size) = (9, 70, (19, 23));
        let weights = normals(0, outputs * 9 * inputs);
        let weight = Packed::<f32>::new((outputs, 9, inputs), |index| weights[index]);
        let case = Case { batch: 2, channels: (inputs, outputs), size, padding: 1 };
        let x = normals(1, 2 * inputs * size.0 * size.1);
        let run = |x: &[f32], threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let field = Field::planes(x, inputs, size, case.frame());
            let job = Job::forward(case.window(), Start::ZERO, Order::Planes);
            pool.install(|| winograd(&field, &weight, job))
        };
        let both = run(&x, 1);
        assert!(run(&x, 3) == both, "three threads");
        let alone = [&x[..x.len() / 2], &x[x.len() / 2..]].map(|x| run(x, 1)).concat();
        assert!(alone == both, "each sample alone");
    }

    #[test]
    fn it_pays_for_maps_of_some_size_and_only_for_the_window_it_computes() {
        let window = |kernel, stride, side| Window { kernel: (kernel, kernel), stride, output: (side, side) };
        assert!(pays::<f32>(window(3, 1, 8)) && pays::<bf16>(window(3, 1, 16)));
        assert!(!pays::<f32>(window(3, 1, 4)) && !pays::<bf16>(window(3, 1, 8)));
        assert!(!pays::<f32>(window(3, 2, 64)) && !pays::<f32>(window(1, 1, 64)) && !pays::<f32>(window(5, 1, 64)));
    }
}
