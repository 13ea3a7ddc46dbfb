//! The low-rank update (LoRA) of one module, and the one function that forms its matrix.

use std::ops::Range;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// The largest rank of a new adapter; published ones stay below 1024.
pub const LARGEST_RANK: usize = 16_384;

/// The largest rank on a module both of whose sides are smaller. No update needs a rank above the smaller side; trainers
/// give every module the same rank, also those with few channels.
pub const LARGEST_SURPLUS_RANK: usize = 1024;

/// The low-rank update of one module: `weight + alpha / rank * up * down`.
///
/// **Shapes** linear: `down: [rank, in]`, `up: [out, rank]`; convolution:
/// `down: [rank, in, kernel, kernel]`, `up: [out, rank, 1, 1]`.
///
/// **Source** LoRA, arXiv 2106.09685, section 4.1.
#[derive(Debug, Clone)]
pub struct LoraFactors {
    /// Maps the module's input to `rank` values.
    pub down: Tensor,
    /// Maps the `rank` values to the module's output; zero in a fresh adapter.
    pub up: Tensor,
    /// Numerator of the scale `alpha / rank`; usually the rank or 1.
    pub alpha: f64,
}

impl LoraFactors {
    /// Pairs two factors after checking that their shapes fit.
    ///
    /// # Errors
    /// [`Error::FactorShapes`] when the ranks differ or the dimensions are not those
    /// of a linear layer or a convolution; [`Error::InvalidAlpha`] for an alpha that is not finite as f32, in which files keep
    /// it.
    pub fn new(down: Tensor, up: Tensor, alpha: f64) -> Result<Self> {
        let fits = match (down.dims(), up.dims()) {
            ([rank, _], [_, columns]) => rank == columns && *rank > 0,
            ([rank, _, height, width], [_, columns, 1, 1]) => rank == columns && *rank > 0 && *height > 0 && *width > 0,
            _ => false,
        };
        if !fits {
            return Err(Error::FactorShapes { down: down.dims().to_vec(), up: up.dims().to_vec() });
        }
        if !(alpha as f32).is_finite() {
            return Err(Error::InvalidAlpha { alpha });
        }
        Ok(Self { down, up, alpha })
    }

    /// Number of rows of `down`.
    pub fn rank(&self) -> usize {
        self.down.dims().first().copied().unwrap_or(0)
    }

    /// `alpha / rank`, the factor of the product `up * down`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank().max(1) as f64
    }

    /// Whether the factors belong to a convolution.
    pub fn is_convolution(&self) -> bool {
        self.down.rank() == 4
    }

    /// Number of elements of both factors.
    pub fn element_count(&self) -> usize {
        self.down.elem_count() + self.up.elem_count()
    }

    /// The factors as plain f32 matrices: `up: [out, rank]`, `down: [rank, in * kernel * kernel]`.
    ///
    /// **Gradient** flows to both factors.
    pub fn matrices(&self) -> Result<Matrices> {
        let flat = |tensor: &Tensor| tensor.flatten_from(1)?.to_dtype(DType::F32);
        Ok(Matrices {
            up: flat(&self.up).map_err(Error::tensor("flattening `up`"))?,
            down: flat(&self.down).map_err(Error::tensor("flattening `down`"))?,
        })
    }

    /// Factors for the same module from plain matrices of any rank, reshaped to this module's layout.
    pub fn with_matrices(&self, matrices: &Matrices, alpha: f64) -> Result<Self> {
        let Matrices { up, down } = matrices;
        let rank = down.dims().first().copied().unwrap_or(0);
        let reshape =
            |tensor: &Tensor, shape: Vec<usize>| tensor.reshape(shape).map_err(Error::tensor("reshaping factors"));
        let mut down_shape = self.down.dims().to_vec();
        let mut up_shape = self.up.dims().to_vec();
        down_shape[0] = rank;
        up_shape[1] = rank;
        Self::new(reshape(down, down_shape)?, reshape(up, up_shape)?, alpha)
    }

    /// The update as a matrix, `scale * up * down`, in f32: `[out, in]` or `[out, in, kernel, kernel]`.
    ///
    /// **Gradient** flows to both factors.
    pub fn delta(&self) -> Result<Tensor> {
        let Matrices { up, down } = self.matrices()?;
        let mut shape = self.down.dims().to_vec();
        shape[0] = up.dims()[0];
        up.matmul(&down)
            .and_then(|product| (product * self.scale())?.reshape(shape))
            .map_err(Error::tensor("forming the update"))
    }

    /// Frobenius norm of [`delta`](Self::delta), computed in f64 in blocks of bounded size.
    ///
    /// The norm is taken from the smaller side: up to a rank of `min(out, in)`, `||up * down||^2` is the sum over the
    /// elementwise product of the Gram matrices `up^T up` and `down down^T`, both `[rank, rank]`; above it, the sum over
    /// the squares of the product itself, `[out, in]`.
    pub fn delta_norm(&self) -> Result<f64> {
        let Matrices { up, down } = self.matrices()?;
        let (rank, smaller_side) = (down.dims()[0], up.dims()[0].min(down.dims()[1]));
        let squared = if rank <= smaller_side { squared_by_gram(&up, &down) } else { squared_by_product(&up, &down) };
        let squared = squared.map_err(Error::tensor("measuring the update"))?;
        Ok(self.scale().abs() * squared.max(0.0).sqrt())
    }

    /// The update times `strength`. Only `alpha` changes, so no factor is rounded.
    pub fn scaled(&self, strength: f64) -> Self {
        Self { alpha: self.alpha * strength, ..self.clone() }
    }
}

/// Side of the largest block of a product: 8 MiB in f64.
const BLOCK_SIDE: usize = 1 << 10;
/// Most elements that are converted to f64 together: 16 MiB.
const CONVERTED: usize = 1 << 21;

fn squared_by_gram(up: &Tensor, down: &Tensor) -> candle_core::Result<f64> {
    over_blocks(down.dims()[0], down.dims()[0], |i, j| {
        let gram_up = product(&rows(&up.t()?, &i)?, &rows(&up.t()?, &j)?.t()?)?;
        let gram_down = product(&rows(down, &i)?, &rows(down, &j)?.t()?)?;
        (gram_up * gram_down)?.sum_all()?.to_scalar()
    })
}

fn squared_by_product(up: &Tensor, down: &Tensor) -> candle_core::Result<f64> {
    over_blocks(up.dims()[0], down.dims()[1], |i, j| {
        product(&rows(up, &i)?, &rows(&down.t()?, &j)?.t()?)?.sqr()?.sum_all()?.to_scalar()
    })
}

/// The sum of `block` over all blocks of a matrix of this size.
fn over_blocks(
    height: usize,
    width: usize,
    block: impl Fn(Range<usize>, Range<usize>) -> candle_core::Result<f64>,
) -> candle_core::Result<f64> {
    let mut sum = 0.0;
    for i in ranges(height, BLOCK_SIDE) {
        for j in ranges(width, BLOCK_SIDE) {
            sum += block(i.clone(), j)?;
        }
    }
    Ok(sum)
}

/// `left * right` in f64; only some columns of `left` and rows of `right` are converted at a time.
fn product(left: &Tensor, right: &Tensor) -> candle_core::Result<Tensor> {
    let (height, width, inner) = (left.dims()[0], right.dims()[1], right.dims()[0]);
    let step = (CONVERTED / (height + width).max(1)).max(1);
    let mut products = ranges(inner, step).map(|k| {
        let left = left.narrow(1, k.start, k.len())?.to_dtype(DType::F64)?;
        left.matmul(&rows(right, &k)?.to_dtype(DType::F64)?)
    });
    let first = products.next().unwrap_or_else(|| Tensor::zeros((height, width), DType::F64, left.device()))?;
    products.try_fold(first, |sum, product| sum + product?)
}

fn rows(matrix: &Tensor, range: &Range<usize>) -> candle_core::Result<Tensor> {
    matrix.narrow(0, range.start, range.len())
}

/// `0..end` in ranges of at most `step`.
fn ranges(end: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(step).map(move |start| start..(start + step).min(end))
}

/// The factors of one module as plain matrices; see [`LoraFactors::matrices`].
#[derive(Debug, Clone)]
pub struct Matrices {
    /// `[out, rank]`.
    pub up: Tensor,
    /// `[rank, in * kernel * kernel]`.
    pub down: Tensor,
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use catelier_numerics::finite::is_finite;

    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn two_by_three() -> LoraFactors {
        let down = tensor(&[1., 2., 3., 4., 5., 6.], &[2, 3]);
        let up = tensor(&[1., 0., 0., 1., 1., 1.], &[3, 2]);
        LoraFactors::new(down, up, 4.0).unwrap()
    }

    #[test]
    fn delta_is_alpha_over_rank_times_the_product() {
        let delta = two_by_three().delta().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(delta, [[2., 4., 6.], [8., 10., 12.], [10., 14., 18.]].map(Vec::from));
    }

    #[test]
    fn an_alpha_that_no_file_can_keep_is_refused() {
        for alpha in [f64::NAN, f64::INFINITY, 1e39] {
            let LoraFactors { down, up, .. } = two_by_three();
            let refused = LoraFactors::new(down, up, alpha);
            assert!(matches!(refused, Err(Error::InvalidAlpha { .. })), "{alpha}");
        }
    }

    #[test]
    fn delta_of_a_convolution_keeps_its_kernel() {
        let down = tensor(&[1., 2., 3., 4., 5., 6., 7., 8.], &[1, 2, 2, 2]);
        let up = tensor(&[1., -1., 2.], &[3, 1, 1, 1]);
        let delta = LoraFactors::new(down, up, 1.0).unwrap().delta().unwrap();
        assert_eq!(delta.dims(), [3, 2, 2, 2]);
        let last = delta.get(2).unwrap().flatten_all().unwrap();
        assert_eq!(last.to_vec1::<f32>().unwrap(), [2., 4., 6., 8., 10., 12., 14., 16.]);
    }

    #[test]
    fn delta_norm_is_the_norm_of_delta() {
        let factors = two_by_three();
        let delta = factors.delta().unwrap();
        let direct = delta.sqr().unwrap().sum_all().unwrap();
        let direct = f64::from(direct.to_scalar::<f32>().unwrap()).sqrt();
        assert!((factors.delta_norm().unwrap() - direct).abs() < 1e-5 * direct);
    }

    fn wave(rows: usize, columns: usize, phase: f32) -> Tensor {
        let values = (0..rows * columns).map(|i| (1.3 * i as f32 + phase).sin()).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    #[test]
    fn delta_norm_of_any_shape_is_the_norm_of_delta() {
        for (out, rank, inputs) in [(3, 2, 4), (3, 7, 4), (1, 3000, 2), (1500, 1200, 1300), (1100, 3000, 5), (2, 2, 0)]
        {
            let factors = LoraFactors::new(wave(rank, inputs, 0.2), wave(out, rank, 0.7), 1.5).unwrap();
            let delta = factors.delta().unwrap().to_dtype(DType::F64).unwrap();
            let direct = delta.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
            let norm = factors.delta_norm().unwrap();
            assert!((norm - direct).abs() <= 1e-5 * direct, "{out} {rank} {inputs}: {norm} against {direct}");
        }
    }

    #[test]
    fn factors_of_different_rank_are_refused() {
        let error = LoraFactors::new(tensor(&[1., 2.], &[2, 1]), tensor(&[1.], &[1, 1]), 1.0);
        assert!(matches!(error, Err(Error::FactorShapes { .. })));
    }

    #[test]
    fn scaling_multiplies_the_update() {
        let twice = two_by_three().scaled(2.0).delta().unwrap();
        assert_eq!(twice.to_vec2::<f32>().unwrap()[0], [4., 8., 12.]);
    }

    #[test]
    fn finiteness_is_judged_value_by_value() {
        assert!(is_finite(&tensor(&[3e38, 3e38], &[2])).unwrap());
        assert!(!is_finite(&tensor(&[1., f32::NAN], &[2])).unwrap());
        assert!(!is_finite(&tensor(&[f32::NEG_INFINITY, 1.], &[2])).unwrap());
    }
}
