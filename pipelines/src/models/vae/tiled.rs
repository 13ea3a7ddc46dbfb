//! Processes an image in overlapping tiles, which takes less memory than the whole image.
//!
//! Normalisation and attention see one tile at a time, so the result differs slightly from the whole image's.
//! Neighbouring tiles overlap by a quarter of their side, and one fades into the other there.
//!
//! **Source**: `AutoencoderKL.tiled_decode` and `_tiled_encode` of diffusers 0.42.

use candle_core::{Result as TensorResult, Tensor};

/// Which images are processed in tiles, and the size of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Limit in bytes: an image larger than a tile is processed in tiles if its activations would take more.
    pub above_bytes: u64,
    /// Side of a tile in latent cells, a multiple of 4.
    pub side: usize,
}

impl Tiling {
    /// 512 pixels of Stable Diffusion, the size that its autoencoder was trained on.
    pub const SIDE: usize = 64;

    /// Processes every image whole.
    pub const fn never() -> Self {
        Self::above(u64::MAX)
    }

    /// Processes every image larger than a tile of 64 cells in tiles.
    pub const fn always() -> Self {
        Self::above(0)
    }

    /// Processes images larger than a tile of 64 cells in tiles if they would take more than `bytes`.
    pub const fn above(bytes: u64) -> Self {
        Self { above_bytes: bytes, side: Self::SIDE }
    }
}

/// Sizes of tiles before and after a network, in cells or in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Side of an input tile.
    side: usize,
    /// Distance from one input tile to the next.
    stride: usize,
    /// Overlap of neighbouring output tiles.
    overlap: usize,
    /// Side of the part that is kept of an output tile; its right and lower neighbours cover the rest.
    keep: usize,
}

impl Cut {
    /// Input tiles of side `input` and output tiles of side `output`; both multiples of 4.
    pub(super) fn new(input: usize, output: usize) -> Self {
        let quarter = |side: usize| side / 4;
        Self { side: input, stride: input - quarter(input), overlap: quarter(output), keep: output - quarter(output) }
    }

    /// Applies `network` to tiles of `map: [batch, channels, height, width]` and joins the results.
    pub(super) fn apply(self, map: &Tensor, network: impl Fn(&Tensor) -> TensorResult<Tensor>) -> TensorResult<Tensor> {
        let mut rows = Vec::new();
        let mut above = Vec::new();
        for top in (0..map.dim(2)?).step_by(self.stride) {
            let row = self.row(&within(map, 2, top, self.side)?, &above, &network)?;
            let kept = row.iter().map(|tile| within(&within(tile, 2, 0, self.keep)?, 3, 0, self.keep));
            rows.push(Tensor::cat(&kept.collect::<TensorResult<Vec<_>>>()?, 3)?);
            above = row;
        }
        Tensor::cat(&rows, 2)?.contiguous()
    }

    /// A row of tiles. Each tile is blended with the tile above it, then with the tile to its left: the order of
    /// diffusers, because users compare images across programs.
    fn row(
        self,
        map: &Tensor,
        above: &[Tensor],
        network: impl Fn(&Tensor) -> TensorResult<Tensor>,
    ) -> TensorResult<Vec<Tensor>> {
        let mut row: Vec<Tensor> = Vec::new();
        for start in (0..map.dim(3)?).step_by(self.stride) {
            let mut tile = network(&within(map, 3, start, self.side)?.contiguous()?)?;
            if let Some(above) = above.get(row.len()) {
                tile = fade(above, &tile, 2, self.overlap)?;
            }
            if let Some(left) = row.last() {
                tile = fade(left, &tile, 3, self.overlap)?;
            }
            row.push(tile);
        }
        Ok(row)
    }
}

/// At most `length` elements of a dimension from `start` on.
fn within(map: &Tensor, dimension: usize, start: usize, length: usize) -> TensorResult<Tensor> {
    map.narrow(dimension, start, length.min(map.dim(dimension)? - start))
}

/// `tile` with its first `overlap` elements of a dimension blended linearly from the last elements of `before` to its
/// own.
fn fade(before: &Tensor, tile: &Tensor, dimension: usize, overlap: usize) -> TensorResult<Tensor> {
    let (earlier, size) = (before.dim(dimension)?, tile.dim(dimension)?);
    let overlap = overlap.min(earlier).min(size);
    let weights = |weight: &dyn Fn(f64) -> f64| {
        let weights = (0..overlap).map(|at| weight(at as f64 / overlap as f64) as f32).collect::<Vec<_>>();
        let mut shape = vec![1; tile.rank()];
        shape[dimension] = overlap;
        Tensor::from_vec(weights, shape, tile.device())?.to_dtype(tile.dtype())
    };
    let old = before.narrow(dimension, earlier - overlap, overlap)?.broadcast_mul(&weights(&|at| 1.0 - at)?)?;
    let new = tile.narrow(dimension, 0, overlap)?.broadcast_mul(&weights(&|at| at)?)?;
    Tensor::cat(&[&(old + new)?, &tile.narrow(dimension, overlap, size - overlap)?], dimension)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    use super::*;

    fn largest_difference(left: &Tensor, right: &Tensor) -> f32 {
        assert_eq!(left.dims(), right.dims());
        (left - right).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// Values that differ everywhere.
    fn map(height: usize, width: usize) -> Tensor {
        let numbers = (0..2 * height * width).map(|index| (index as f32 * 0.7).sin()).collect::<Vec<_>>();
        Tensor::from_vec(numbers, (1, 2, height, width), &Device::Cpu).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Where overlapping tiles agree, the joined result equals them: the weights sum to one and nothing is shifted.
        #[test]
        fn a_network_that_looks_at_single_cells_shows_no_seam(
            quarter in 1..4usize,
            (height, width) in (1..40usize, 1..40usize),
        ) {
            let (side, map) = (4 * quarter, map(height, width));
            let found = Cut::new(side, side).apply(&map, |tile| tile * 3.0).unwrap();
            prop_assert!(largest_difference(&found, &(&map * 3.0).unwrap()) < 1e-5);
        }

        #[test]
        fn tiles_grow_to_where_their_cells_grow(quarter in 1..4usize, (height, width) in (1..30usize, 1..30usize)) {
            let (side, map) = (4 * quarter, map(height, width));
            let double = |tile: &Tensor| tile.upsample_nearest2d(2 * tile.dim(2)?, 2 * tile.dim(3)?);
            let found = Cut::new(side, 2 * side).apply(&map, double).unwrap();
            prop_assert!(largest_difference(&found, &double(&map).unwrap()) < 1e-5);
        }
    }

    #[test]
    fn one_tile_fades_into_the_next_in_equal_steps() {
        let count = std::cell::Cell::new(0.0);
        // The first tile is all 0, the second all 1: the result is the second one's weight.
        let number = |tile: &Tensor| {
            let value = count.replace(count.get() + 1.0);
            Tensor::full(value as f32, tile.shape(), tile.device())
        };
        let map = Tensor::zeros((1, 1, 8, 20), DType::F32, &Device::Cpu).unwrap();
        let cut = Cut { side: 16, stride: 12, overlap: 4, keep: 12 };
        let found = cut.apply(&map.narrow(2, 0, 8).unwrap(), number).unwrap();
        let line = found.get(0).unwrap().get(0).unwrap().get(7).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(line[..12], [0.0; 12]);
        assert_eq!(line[12..], [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]);
    }
}
