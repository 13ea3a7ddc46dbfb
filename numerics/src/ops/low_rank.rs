//! Low-rank updates of frozen layers: the trainable part of an adapted layer, as one node of the graph.

use candle_core::{DType, Result, Shape, Tensor};
use rayon::prelude::*;

use super::device;
use super::frozen::{check_channels, taps_first};
use super::layer::LowRank;
use catelier_kernels::{
    Convolution, Float, Kernel3, Matrix, MatrixMut, NeedsGrad, Threads, Update, View, apply3, multiply,
    multiply_in_cache,
};

/// `scale · (x · downᵀ) · upᵀ`.
///
/// **Shapes** `x: [..., in]`, `down: [rank, in]`, `up: [out, rank]`; returns `[..., out]` in the element type of `x`.
/// The backward pass recomputes the activation of width `rank` instead of keeping it.
///
/// **Gradient** to `x`, `down` and `up`.
///
/// **Source** Hu et al., arXiv 2106.09685, with `down` for A and `up` for B.
///
/// # Errors
/// For shapes that do not fit.
pub fn low_rank_linear(x: &Tensor, down: &Tensor, up: &Tensor, scale: f64) -> Result<Tensor> {
    check_low_rank(x, down, up)?;
    together(x, down, up, |x, down, up| {
        if x.device().is_cpu() {
            let mut output = x.dims().to_vec();
            output[x.rank() - 1] = up.dims()[0];
            apply3(x, down, up, Alone { update: LowRankLinear { scale }, output: output.into() })
        } else {
            device::low_rank_linear(x, down, up, scale)
        }
    })
}

pub(super) fn check_low_rank(x: &Tensor, down: &Tensor, up: &Tensor) -> Result<()> {
    let ((rank, in_features), (_, up_rank)) = (down.dims2()?, up.dims2()?);
    if x.dims().last() != Some(&in_features) || rank != up_rank {
        let (x, down, up) = (x.dims(), down.dims(), up.dims());
        candle_core::bail!("low-rank linear: x {x:?}, down {down:?} [rank, in] and up {up:?} [out, rank] do not fit");
    }
    Ok(())
}

/// `scale · up ∗ (down ∗ x)`: a convolution to `rank` channels and a 1×1 convolution back.
///
/// **Shapes** `x: [batch, in, height, width]`, `down: [rank, in, kh, kw]`, `up: [out, rank, 1, 1]`; `stride` and
/// `padding` apply to `down`; returns `[batch, out, oh, ow]` in the element type of `x`.
///
/// **Gradient** to `x`, `down` and `up`.
///
/// # Errors
/// For shapes that do not fit.
pub fn low_rank_conv2d(
    x: &Tensor,
    down: &Tensor,
    up: &Tensor,
    scale: f64,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let sizes = low_rank_sizes(x, down, up, stride, padding)?;
    together(x, down, up, |x, down, up| {
        if x.device().is_cpu() {
            // candle's own operation reorders the weight, so its backward pass returns the gradient to `down`.
            let size = sizes.on((x.dims()[2], x.dims()[3]))?.output();
            let output = (x.dims()[0], up.dims()[0], size.0, size.1).into();
            apply3(x, &taps_first(down)?, up, Alone { update: LowRankConv2d { scale, sizes }, output })
        } else {
            device::low_rank_conv2d(x, down, up, scale, sizes)
        }
    })
}

/// Sizes of the `down` convolution, after a check of all shapes.
pub(super) fn low_rank_sizes(
    x: &Tensor,
    down: &Tensor,
    up: &Tensor,
    stride: usize,
    padding: usize,
) -> Result<Convolution> {
    let ((rank, in_channels, height, width), up_dims) = (down.dims4()?, up.dims4()?);
    let sizes = Convolution { in_channels, out_channels: rank, kernel: (height, width), stride, padding };
    check_channels(x, &sizes)?;
    if up_dims != (up_dims.0, rank, 1, 1) || stride == 0 {
        let (down, up) = (down.dims(), up.dims());
        candle_core::bail!(
            "low-rank conv2d: down {down:?} [rank, in, kh, kw], up {up:?} [out, rank, 1, 1] and stride {stride} do not fit"
        );
    }
    Ok(sizes)
}

/// Runs `f` in the element type of `x`; half precision on the CPU is computed in f32.
fn together(
    x: &Tensor,
    down: &Tensor,
    up: &Tensor,
    f: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let wide = match x.dtype() {
        DType::F16 | DType::BF16 if x.device().is_cpu() => DType::F32,
        dtype => dtype,
    };
    f(&x.to_dtype(wide)?, &down.to_dtype(wide)?, &up.to_dtype(wide)?)?.to_dtype(x.dtype())
}

/// `result += scale · a · b`, `result: [rows, columns]`.
fn add_product<T: Float>(
    result: &mut [T],
    (rows, columns): (usize, usize),
    scale: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
) {
    multiply(MatrixMut::new(result, rows, columns), Update::Add, scale, a, b, Threads::All);
}

/// An update without its frozen layer.
struct Alone<U> {
    update: U,
    output: Shape,
}

impl<U: LowRank> Kernel3 for Alone<U> {
    const NAME: &'static str = "low-rank";

    fn forward<T: Float>(&self, arguments: [View<'_, T>; 3]) -> Result<(Vec<T>, Shape)> {
        let mut y = vec![T::ZERO; self.output.elem_count()];
        self.update.add_to(arguments, &mut y)?;
        Ok((y, self.output.clone()))
    }

    fn backward<T: Float>(
        &self,
        arguments: [View<'_, T>; 3],
        _: View<'_, T>,
        grad: View<'_, T>,
        wanted: NeedsGrad,
    ) -> Result<[Vec<T>; 3]> {
        let dx = if wanted[0] { vec![T::ZERO; arguments[0].data.len()] } else { Vec::new() };
        self.update.backward(arguments, grad, wanted, dx)
    }
}

pub(super) struct LowRankLinear {
    pub(super) scale: f64,
}

/// Rows that are multiplied together, so that memory is read once. Gradients of the factors are summed within these
/// blocks, then over the blocks in order, so that bits do not depend on the number of threads.
const ROWS: usize = 128;

/// Elements in [`ROWS`] rows of `width` elements.
fn piece(width: usize) -> usize {
    (ROWS * width).max(1)
}

impl LowRank for LowRankLinear {
    fn add_to<T: Float>(&self, [x, down, up]: [View<'_, T>; 3], y: &mut [T]) -> Result<()> {
        let (down, up) = (Factor::new(down), Factor::new(up));
        let pieces = y.par_chunks_mut(piece(up.rows)).zip(x.data.par_chunks(piece(down.columns)));
        pieces.for_each(|(y, x)| {
            let rows = y.len() / up.rows;
            let narrow = product(T::ONE, Matrix::new(x, rows, down.columns), down.turned());
            let narrow = Matrix::new(&narrow, rows, up.columns);
            multiply_in_cache(
                MatrixMut::new(y, rows, up.rows),
                Update::Add,
                T::from_f64(self.scale),
                narrow,
                up.turned(),
            );
        });
        Ok(())
    }

    fn backward<T: Float>(
        &self,
        [x, down, up]: [View<'_, T>; 3],
        grad: View<'_, T>,
        _: NeedsGrad,
        mut dx: Vec<T>,
    ) -> Result<[Vec<T>; 3]> {
        let (down, up) = (Factor::new(down), Factor::new(up));
        let pieces = x.data.par_chunks(piece(down.columns));
        let pieces = pieces.zip(grad.data.par_chunks(piece(up.rows)));
        let pieces: Vec<_> = pieces.map(|(x, grad)| self.differentiate(x, grad, (&down, &up))).collect();
        dx.par_chunks_mut(piece(down.columns)).zip(&pieces).for_each(|(dx, piece)| {
            let rows = dx.len() / down.columns;
            let d_narrow = Matrix::new(&piece.d_narrow, rows, down.rows);
            multiply_in_cache(MatrixMut::new(dx, rows, down.columns), Update::Add, T::ONE, d_narrow, down.matrix());
        });
        let gradients = pieces.into_iter().map(|piece| [piece.d_down, piece.d_up_turned]);
        let none = || [&down, &up].map(|factor| vec![T::ZERO; factor.data.len()]);
        let [d_down, d_up_turned] = gradients.reduce(add_each).unwrap_or_else(none);
        Ok([dx, d_down, Matrix::new(&d_up_turned, up.columns, up.rows).transposed()])
    }
}

impl LowRankLinear {
    /// Contribution of a block of rows to the gradients of the factors.
    fn differentiate<T: Float>(&self, x: &[T], grad: &[T], (down, up): (&Factor<'_, T>, &Factor<'_, T>)) -> Piece<T> {
        let rows = grad.len() / up.rows;
        let (x, grad) = (Matrix::new(x, rows, down.columns), Matrix::new(grad, rows, up.rows));
        let scale = T::from_f64(self.scale);
        let narrow = product(T::ONE, x, down.turned());
        let d_narrow = product(scale, grad, up.matrix());
        let columns = [&narrow, &d_narrow].map(|narrow| Matrix::new(narrow, rows, down.rows).transposed());
        let [narrow, d_narrow_turned] = columns.each_ref().map(|columns| Matrix::new(columns, down.rows, rows));
        Piece { d_up_turned: product(scale, narrow, grad), d_down: product(T::ONE, d_narrow_turned, x), d_narrow }
    }
}

/// Gradients from one block of rows: of the rank-wide activation, of `down`, and of the transpose of `up`.
struct Piece<T> {
    d_narrow: Vec<T>,
    d_down: Vec<T>,
    d_up_turned: Vec<T>,
}

fn add_each<T: Float>(mut sums: [Vec<T>; 2], more: [Vec<T>; 2]) -> [Vec<T>; 2] {
    for (sums, more) in sums.iter_mut().zip(&more) {
        sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += *more);
    }
    sums
}

/// A factor and its transpose.
struct Factor<'a, T> {
    data: &'a [T],
    turned: Vec<T>,
    rows: usize,
    columns: usize,
}

impl<'a, T: Float> Factor<'a, T> {
    fn new(factor: View<'a, T>) -> Self {
        let (rows, columns) = factor.rows();
        Self { data: factor.data, turned: Matrix::new(factor.data, rows, columns).transposed(), rows, columns }
    }

    fn matrix(&self) -> Matrix<'_, T> {
        Matrix::new(self.data, self.rows, self.columns)
    }

    fn turned(&self) -> Matrix<'_, T> {
        Matrix::new(&self.turned, self.columns, self.rows)
    }
}

/// `scale · a · b` as a new matrix; the rows of `a` and `b` are contiguous.
fn product<T: Float>(scale: T, a: Matrix<'_, T>, b: Matrix<'_, T>) -> Vec<T> {
    let (rows, columns) = (a.shape().0, b.shape().1);
    let mut result = vec![T::ZERO; rows * columns];
    multiply_in_cache(MatrixMut::new(&mut result, rows, columns), Update::Replace, scale, a, b);
    result
}

pub(super) struct LowRankConv2d {
    pub(super) scale: f64,
    pub(super) sizes: Convolution,
}

impl LowRankConv2d {
    /// `result += matrix · narrow` for every image, `matrix: [rows, columns]`.
    fn add_pointwise<T: Float>(
        &self,
        matrix: Matrix<'_, T>,
        (rows, columns): (usize, usize),
        images: &[T],
        pixels: usize,
        result: &mut [T],
    ) {
        let pairs = images.chunks_exact((columns * pixels).max(1)).zip(result.chunks_exact_mut((rows * pixels).max(1)));
        for (image, result) in pairs {
            let image = Matrix::new(image, columns, pixels);
            add_product(result, (rows, pixels), T::from_f64(self.scale), matrix, image);
        }
    }

    /// `scale · Σ grad · narrowᵀ` over the images, `[out, rank]`.
    fn up_gradient<T: Float>(
        &self,
        grad: &[T],
        narrow: &[T],
        (out_channels, rank): (usize, usize),
        pixels: usize,
    ) -> Vec<T> {
        let mut result = vec![T::ZERO; out_channels * rank];
        let pairs = grad.chunks_exact((out_channels * pixels).max(1)).zip(narrow.chunks_exact((rank * pixels).max(1)));
        for (grad, narrow) in pairs {
            let (grad, narrow) = (Matrix::new(grad, out_channels, pixels), Matrix::new(narrow, rank, pixels));
            let result = MatrixMut::new(&mut result, out_channels, rank);
            multiply(result, Update::Add, T::from_f64(self.scale), grad, narrow.t(), Threads::All);
        }
        result
    }
}

impl LowRank for LowRankConv2d {
    fn add_to<T: Float>(&self, [x, down, up]: [View<'_, T>; 3], y: &mut [T]) -> Result<()> {
        let placed = self.sizes.on((x.dims[2], x.dims[3]))?;
        let (batch, out_channels, rank) = (x.dims[0], up.dims[0], self.sizes.out_channels);
        let (height, width) = placed.output();
        let narrow = placed.forward(x.data, down.data, None, batch);
        let up = Matrix::new(up.data, out_channels, rank);
        self.add_pointwise(up, (out_channels, rank), &narrow, height * width, y);
        Ok(())
    }

    fn backward<T: Float>(
        &self,
        [x, down, up]: [View<'_, T>; 3],
        grad: View<'_, T>,
        wanted: NeedsGrad,
        mut dx: Vec<T>,
    ) -> Result<[Vec<T>; 3]> {
        let placed = self.sizes.on((x.dims[2], x.dims[3]))?;
        let (batch, out_channels, rank) = (x.dims[0], up.dims[0], self.sizes.out_channels);
        let pixels = placed.output().0 * placed.output().1;
        let up = Matrix::new(up.data, out_channels, rank);
        let mut d_narrow = vec![T::ZERO; batch * rank * pixels];
        self.add_pointwise(up.t(), (rank, out_channels), grad.data, pixels, &mut d_narrow);
        if wanted[0] {
            let more = placed.input_gradient(&d_narrow, down.data, batch);
            dx.iter_mut().zip(more).for_each(|(dx, more)| *dx += more);
        }
        let when = |position: usize, f: &dyn Fn() -> Vec<T>| if wanted[position] { f() } else { Vec::new() };
        Ok([
            dx,
            when(1, &|| placed.weight_gradient(x.data, &d_narrow)),
            when(2, &|| {
                let narrow = placed.forward(x.data, down.data, None, batch);
                self.up_gradient(grad.data, &narrow, (out_channels, rank), pixels)
            }),
        ])
    }
}
