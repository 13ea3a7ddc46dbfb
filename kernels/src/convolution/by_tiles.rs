//! 3 × 3 convolutions with stride 1 in a quarter of the products: Winograd's F(4 × 4, 3 × 3), on any CPU.
//!
//! A tile of 4 × 4 results is `Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`, with the kernel `g` and the 6 × 6 input pixels `d` of the
//! tile. Over channels, `⊙` is one matrix product for each of 36 *places* (Lavin and Gray, 2016, sections 4.1 and 4.3).

use std::ops::Range;

use rayon::prelude::*;

use super::{Convolution, OnImages, area};
use crate::transform::{LANES, OfKernels, OfPixels, OfSums, PLACES, SIDE, SPAN, Transform};
use crate::vector::{Loop, Simd, vectorized};
use crate::{Float, Matrix, MatrixMut, Threads, Update, multiply};

/// Output channels of one task.
const BLOCK: usize = 64;
/// Elements of transformed pixels in memory at a time; at least those of [`FEWEST`] tiles.
const BAND: usize = 2 << 20;
/// Fewest tiles in a band: with fewer, transforming all kernels would cost too much.
const FEWEST: usize = 64;
/// Smallest side of a map, and smallest number of channels, for which Winograd's method is faster.
const SMALLEST: usize = 16;

/// Estimate of the bytes that a 3 × 3 convolution of stride 1 allocates on `threads` threads for one map of `pixels`
/// pixels, in addition to its padded input and its result.
pub fn scratch_bytes([inputs, outputs]: [usize; 2], pixels: usize, threads: usize) -> usize {
    if inputs.min(outputs) < SMALLEST || pixels < SMALLEST * SMALLEST {
        // By taps: the result with its surplus.
        return size_of::<f32>() * outputs * pixels;
    }
    let tiles = pixels.div_ceil(SIDE * SIDE).min(band(inputs));
    size_of::<f32>() * PLACES * (inputs * tiles + threads * outputs.min(BLOCK) * (inputs + tiles))
}

/// Tiles transformed at a time, for `channels` input channels.
fn band(channels: usize) -> usize {
    (BAND / (PLACES * channels.max(1))).max(FEWEST)
}

impl OnImages {
    /// Whether Winograd's method is used for this element type and output maps of this size.
    pub(super) fn goes_by_tiles<T: Float>(&self, (height, width): (usize, usize)) -> bool {
        let Convolution { in_channels, out_channels, kernel, stride, padding } = self.of;
        let small = height.min(width).min(in_channels).min(out_channels) < SMALLEST;
        T::as_f32(&[]).is_some() && kernel == (3, 3) && stride == 1 && padding < 3 && !small
    }

    pub(super) fn forward_by_tiles(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        let Convolution { in_channels, padding, .. } = self.of;
        let pixels = Tiled::new(x, (in_channels, self.input), padding, self.output);
        pixels.convolve(&Kernels { weight, of: self.of, transposed: false }, bias, y);
    }

    pub(super) fn input_gradient_by_tiles(&self, dy: &[f32], weight: &[f32], dx: &mut [f32]) {
        let Convolution { out_channels, padding, .. } = self.of;
        let pixels = Tiled::new(dy, (out_channels, self.output), 2 - padding, self.input);
        pixels.convolve(&Kernels { weight, of: self.of, transposed: true }, None, dx);
    }
}

/// Taps-first kernels, transposed for the gradient of the input.
struct Kernels<'a> {
    weight: &'a [f32],
    of: Convolution,
    transposed: bool,
}

impl Kernels<'_> {
    /// Transformed kernels for the output channels `made`: `[out, place, in]`, in the order of the weight's dimensions.
    fn transformed(&self, made: &Range<usize>) -> Vec<f32> {
        let Convolution { in_channels, out_channels, .. } = self.of;
        let (outs, ins) =
            if self.transposed { (0..out_channels, made.clone()) } else { (made.clone(), 0..in_channels) };
        let mut transformed = vec![0.0; outs.len() * PLACES * ins.len()];
        for (out, into) in outs.zip(transformed.chunks_exact_mut(PLACES * ins.len())) {
            let taps = &self.weight[out * self.of.taps() * in_channels..][..self.of.taps() * in_channels];
            vectorized::<TransformKernels, _>((taps, in_channels, &ins, self.transposed, into));
        }
        transformed
    }

    /// The matrix `[made, summed]` at one place of kernels [`transformed`](Self::transformed) for `count` output
    /// channels.
    fn place<'a>(&self, transformed: &'a [f32], count: usize, place: usize) -> Matrix<'a, f32> {
        let Convolution { in_channels, out_channels, .. } = self.of;
        let (outs, ins) = if self.transposed { (out_channels, count) } else { (count, in_channels) };
        let matrix = Matrix::rows_apart(&transformed[place * ins..], outs, ins, PLACES * ins);
        if self.transposed { matrix.t() } else { matrix }
    }
}

/// Transforms the kernels from some input channels, `[tap, all inputs]`, to one output channel: `[place, input]`.
struct TransformKernels;

impl Loop<(&[f32], usize, &Range<usize>, bool, &mut [f32])> for TransformKernels {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(simd: S, (taps, all, ins, transposed, into): (&[f32], usize, &Range<usize>, bool, &mut [f32])) {
        let (mut seen, mut places) = ([[[0.0; LANES]; 3]; 3], [[[0.0; LANES]; SPAN]; SPAN]);
        for first in ins.clone().step_by(LANES) {
            let count = LANES.min(ins.end - first);
            for (tap, seen) in seen.as_flattened_mut().iter_mut().enumerate() {
                let tap = if transposed { 8 - tap } else { tap };
                seen[..count].copy_from_slice(&taps[tap * all + first..][..count]);
            }
            OfKernels::squares(simd, &seen, &mut places);
            for (into, place) in into.chunks_exact_mut(ins.len()).zip(places.as_flattened()) {
                into[first - ins.start..][..count].copy_from_slice(&place[..count]);
            }
        }
    }
}

/// A map in a frame of zeros that is a whole number of tiles.
struct Tiled {
    data: Vec<f32>,
    channels: usize,
    /// Height and width of the frame.
    frame: (usize, usize),
    /// Height and width of the result, and the number of tiles in each direction.
    output: (usize, usize),
    tiles: (usize, usize),
}

impl Tiled {
    fn new(map: &[f32], (channels, size): (usize, (usize, usize)), margin: usize, output: (usize, usize)) -> Self {
        let tiles = (output.0.div_ceil(SIDE), output.1.div_ceil(SIDE));
        let frame = (tiles.0 * SIDE + 2, tiles.1 * SIDE + 2);
        let mut data = vec![0.0; channels * area(frame)];
        data.par_chunks_mut(area(frame)).zip(map.par_chunks(area(size))).for_each(|(framed, map)| {
            for (row, pixels) in map.chunks_exact(size.1).enumerate() {
                framed[(row + margin) * frame.1 + margin..][..size.1].copy_from_slice(pixels);
            }
        });
        Self { data, channels, frame, output, tiles }
    }

    fn convolve(&self, kernels: &Kernels<'_>, bias: Option<&[f32]>, y: &mut [f32]) {
        let (all, band) = (area(self.tiles), band(self.channels));
        for first in (0..all).step_by(band) {
            let tiles = first..all.min(first + band);
            let spread = self.spread(&tiles);
            let blocks = y.par_chunks_mut(BLOCK * area(self.output)).enumerate();
            blocks.for_each(|(block, maps)| {
                let made = block * BLOCK..block * BLOCK + maps.len() / area(self.output);
                let sums = self.multiply(kernels, &spread, made.clone(), tiles.len());
                let sums = sums.chunks_exact(PLACES * tiles.len());
                for ((channel, map), sums) in made.zip(maps.chunks_exact_mut(area(self.output))).zip(sums) {
                    let bias = bias.map_or(0.0, |bias| bias[channel]);
                    vectorized::<Gather, _>((self, &tiles, sums, bias, map));
                }
            });
        }
    }

    /// Products for `tiles` tiles at every place: `[made, place, tile]`.
    fn multiply(&self, kernels: &Kernels<'_>, spread: &[f32], made: Range<usize>, tiles: usize) -> Vec<f32> {
        let transformed = kernels.transformed(&made);
        let mut sums = vec![0.0; made.len() * PLACES * tiles];
        for place in 0..PLACES {
            let kernels = kernels.place(&transformed, made.len(), place);
            let pixels = Matrix::rows_apart(&spread[place * tiles..], self.channels, tiles, PLACES * tiles);
            let sums = MatrixMut::rows_apart(&mut sums[place * tiles..], made.len(), tiles, PLACES * tiles);
            multiply(sums, Update::Replace, 1.0, kernels, pixels, Threads::One);
        }
        sums
    }

    /// Transformed pixels of a range of tiles: `[channel, place, tile]`.
    fn spread(&self, tiles: &Range<usize>) -> Vec<f32> {
        let mut spread = vec![0.0; self.channels * PLACES * tiles.len()];
        let channels = spread.par_chunks_mut(PLACES * tiles.len()).zip(self.data.par_chunks(area(self.frame)));
        channels.for_each(|(spread, map)| vectorized::<Spread, _>((self, tiles, map, spread)));
        spread
    }

    /// Row and column of a tile's first result.
    #[inline(always)]
    fn corner(&self, tile: usize) -> (usize, usize) {
        (tile / self.tiles.1 * SIDE, tile % self.tiles.1 * SIDE)
    }
}

/// Transforms the pixels of one channel, a few tiles at a time.
struct Spread;

impl Loop<(&Tiled, &Range<usize>, &[f32], &mut [f32])> for Spread {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(simd: S, (tiled, tiles, map, spread): (&Tiled, &Range<usize>, &[f32], &mut [f32])) {
        let (mut seen, mut places) = ([[[0.0; LANES]; SPAN]; SPAN], [[[0.0; LANES]; SPAN]; SPAN]);
        for first in tiles.clone().step_by(LANES) {
            let count = LANES.min(tiles.end - first);
            for lane in 0..count {
                let (row, column) = tiled.corner(first + lane);
                for (below, seen) in seen.iter_mut().enumerate() {
                    let pixels = &map[(row + below) * tiled.frame.1 + column..][..SPAN];
                    seen.iter_mut().zip(pixels).for_each(|(seen, pixel)| seen[lane] = *pixel);
                }
            }
            OfPixels::squares(simd, &seen, &mut places);
            for (into, place) in spread.chunks_exact_mut(tiles.len()).zip(places.as_flattened()) {
                into[first - tiles.start..][..count].copy_from_slice(&place[..count]);
            }
        }
    }
}

/// Computes the results of some tiles of one channel from the sums at their places.
struct Gather;

impl Loop<(&Tiled, &Range<usize>, &[f32], f32, &mut [f32])> for Gather {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(simd: S, (tiled, tiles, sums, bias, map): (&Tiled, &Range<usize>, &[f32], f32, &mut [f32])) {
        let (mut places, mut results) = ([[[0.0; LANES]; SPAN]; SPAN], [[[0.0; LANES]; SIDE]; SIDE]);
        let (height, width) = tiled.output;
        for first in tiles.clone().step_by(LANES) {
            let count = LANES.min(tiles.end - first);
            for (place, sums) in places.as_flattened_mut().iter_mut().zip(sums.chunks_exact(tiles.len())) {
                place[..count].copy_from_slice(&sums[first - tiles.start..][..count]);
            }
            OfSums::squares(simd, &places, &mut results);
            for lane in 0..count {
                let (row, column) = tiled.corner(first + lane);
                for (below, results) in results.iter().enumerate().take(height - row) {
                    let into = &mut map[(row + below) * width + column..(row + below + 1) * width];
                    into.iter_mut().zip(results).for_each(|(value, result)| *value = result[lane] + bias);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::normals::normals;

    fn exact(values: &[f32]) -> Vec<f64> {
        values.iter().map(|value| f64::from(*value)).collect()
    }

    /// The largest difference divided by the typical size of a result.
    fn apart(found: &[f32], expected: &[f64]) -> f64 {
        assert_eq!(found.len(), expected.len());
        let largest = found.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max);
        largest / (expected.iter().map(|y| y * y).sum::<f64>() / expected.len() as f64).sqrt()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn tiles_are_the_convolution_tap_by_tap_both_ways(
            (in_channels, out_channels) in (16..90usize, 16..90usize),
            (height, width, padding) in (18..30usize, 18..30usize, 0..3usize),
        ) {
            let of = Convolution { in_channels, out_channels, kernel: (3, 3), stride: 1, padding };
            let placed = of.on((height, width)).unwrap();
            let (x, weight) = (normals(0, 2 * in_channels * height * width), normals(1, 9 * in_channels * out_channels));
            let (dy, bias) = (normals(2, 2 * out_channels * area(placed.output())), normals(3, out_channels));
            prop_assert!(placed.goes_by_tiles::<f32>(placed.output()) && !placed.goes_by_tiles::<f64>(placed.output()));

            let y = placed.forward(&x, &weight, Some(&bias), 2);
            let expected = placed.forward(&exact(&x), &exact(&weight), Some(&exact(&bias)), 2);
            prop_assert!(apart(&y, &expected) < 3e-5, "{} apart", apart(&y, &expected));

            let dx = placed.input_gradient(&dy, &weight, 2);
            let expected = placed.input_gradient(&exact(&dy), &exact(&weight), 2);
            prop_assert!(apart(&dx, &expected) < 3e-5, "{} apart", apart(&dx, &expected));
        }
    }

    #[test]
    fn bits_depend_neither_on_threads_nor_on_the_batch() {
        let of = Convolution { in_channels: 130, out_channels: 100, kernel: (3, 3), stride: 1, padding: 1 };
        let placed = of.on((70, 33)).unwrap();
        let (x, weight) = (normals(0, 2 * 130 * 70 * 33), normals(1, 9 * 130 * 100));
        let run = |x: &[f32], batch, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| placed.forward(x, &weight, None, batch))
        };
        let both = run(&x, 2, 1);
        assert!(run(&x, 2, 3) == both, "three threads");
        assert!(run(&x[x.len() / 2..], 1, 2) == both[both.len() / 2..], "a sample alone");
    }
}
