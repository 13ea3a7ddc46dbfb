//! Low-rank updates of frozen layers: the trainable part, as one node of the graph.

use candle_core::{DType, Result, Shape, Tensor};

use super::conv::{check_channels, taps_first};
use super::elsewhere;
use crate::kernel::{Convolution, Float, Kernel3, Matrix, MatrixMut, Threads, Update, View, Wanted, apply3, multiply};

/// `scale · (x · downᵀ) · upᵀ`.
///
/// **Shapes** `x: [..., in]`, `down: [rank, in]`, `up: [out, rank]`; returns `[..., out]`, in the element type of `x`.
/// The narrow activation `[..., rank]` is computed again in the backward pass instead of being kept.
///
/// **Gradient** to `x`, `down` and `up`. **Errors** for shapes that do not fit.
///
/// **Source** Hu et al., arXiv 2106.09685, with `down` for A and `up` for B.
pub fn low_rank_linear(x: &Tensor, down: &Tensor, up: &Tensor, scale: f64) -> Result<Tensor> {
    let ((rank, in_features), (_, up_rank)) = (down.dims2()?, up.dims2()?);
    if x.dims().last() != Some(&in_features) || rank != up_rank {
        let (x, down, up) = (x.dims(), down.dims(), up.dims());
        candle_core::bail!("low-rank linear: x {x:?}, down {down:?} [rank, in] and up {up:?} [out, rank] do not fit");
    }
    together(x, down, up, |x, down, up| {
        if x.device().is_cpu() {
            apply3(x, down, up, LowRankLinear { scale })
        } else {
            elsewhere::low_rank_linear(x, down, up, scale)
        }
    })
}

/// `scale · up ∗ (down ∗ x)`, a convolution to few channels and a 1×1 convolution back.
///
/// **Shapes** `x: [batch, in, height, width]`, `down: [rank, in, kh, kw]`, `up: [out, rank, 1, 1]`; `stride` and
/// `padding` are those of `down`; returns `[batch, out, oh, ow]`, in the element type of `x`.
///
/// **Gradient** to `x`, `down` and `up`. **Errors** for shapes that do not fit.
pub fn low_rank_conv2d(
    x: &Tensor,
    down: &Tensor,
    up: &Tensor,
    scale: f64,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let ((rank, in_channels, height, width), up_dims) = (down.dims4()?, up.dims4()?);
    let sizes = Convolution { in_channels, out_channels: rank, kernel: (height, width), stride, padding };
    check_channels(x, &sizes)?;
    if up_dims != (up_dims.0, rank, 1, 1) || stride == 0 {
        let (down, up) = (down.dims(), up.dims());
        candle_core::bail!(
            "low-rank conv2d: down {down:?} [rank, in, kh, kw], up {up:?} [out, rank, 1, 1] and stride {stride} do not fit"
        );
    }
    together(x, down, up, |x, down, up| {
        if x.device().is_cpu() {
            // The reordering is a node of candle's, which routes the gradient back to `down`.
            apply3(x, &taps_first(down)?, up, LowRankConv2d { scale, sizes })
        } else {
            elsewhere::low_rank_conv2d(x, down, up, scale, sizes)
        }
    })
}

/// Runs `f` in the element type of `x`, except that half precision on the processor is computed in f32.
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

/// `a · b` as a new matrix.
fn product<T: Float>(rows: usize, columns: usize, scale: T, a: Matrix<'_, T>, b: Matrix<'_, T>) -> Vec<T> {
    let mut result = vec![T::ZERO; rows * columns];
    multiply(MatrixMut::new(&mut result, rows, columns), Update::Replace, scale, a, b, Threads::All);
    result
}

struct LowRankLinear {
    scale: f64,
}

impl Kernel3 for LowRankLinear {
    const NAME: &'static str = "low-rank-linear";

    fn forward<T: Float>(&self, [x, down, up]: [View<'_, T>; 3]) -> Result<(Vec<T>, Shape)> {
        let ((rows, in_features), rank, out_features) = (x.rows(), down.dims[0], up.dims[0]);
        let (x_rows, down) = (Matrix::new(x.data, rows, in_features), Matrix::new(down.data, rank, in_features));
        let narrow = product(rows, rank, T::ONE, x_rows, down.t());
        let (narrow, up) = (Matrix::new(&narrow, rows, rank), Matrix::new(up.data, out_features, rank));
        let y = product(rows, out_features, T::from_f64(self.scale), narrow, up.t());
        let mut shape = x.dims.to_vec();
        shape[x.dims.len() - 1] = out_features;
        Ok((y, shape.into()))
    }

    fn backward<T: Float>(
        &self,
        [x, down, up]: [View<'_, T>; 3],
        _: View<'_, T>,
        grad: View<'_, T>,
        wanted: Wanted,
    ) -> Result<[Vec<T>; 3]> {
        let ((rows, in_features), rank, out_features) = (x.rows(), down.dims[0], up.dims[0]);
        let scale = T::from_f64(self.scale);
        let x = Matrix::new(x.data, rows, in_features);
        let down = Matrix::new(down.data, rank, in_features);
        let up = Matrix::new(up.data, out_features, rank);
        let grad = Matrix::new(grad.data, rows, out_features);

        let d_narrow = product(rows, rank, scale, grad, up);
        let d_narrow = Matrix::new(&d_narrow, rows, rank);
        let when = |position: usize, f: &dyn Fn() -> Vec<T>| if wanted[position] { f() } else { Vec::new() };
        Ok([
            when(0, &|| product(rows, in_features, T::ONE, d_narrow, down)),
            when(1, &|| product(rank, in_features, T::ONE, d_narrow.t(), x)),
            when(2, &|| {
                let narrow = product(rows, rank, T::ONE, x, down.t());
                product(out_features, rank, scale, grad.t(), Matrix::new(&narrow, rows, rank))
            }),
        ])
    }
}

struct LowRankConv2d {
    scale: f64,
    sizes: Convolution,
}

impl LowRankConv2d {
    /// `out = matrix · narrow` for every image, `matrix: [rows, columns]`.
    fn pointwise<T: Float>(
        &self,
        matrix: Matrix<'_, T>,
        (rows, columns): (usize, usize),
        images: &[T],
        pixels: usize,
    ) -> Vec<T> {
        let mut result = vec![T::ZERO; images.len() / (columns * pixels).max(1) * rows * pixels];
        let pairs = images.chunks_exact((columns * pixels).max(1)).zip(result.chunks_exact_mut((rows * pixels).max(1)));
        for (image, result) in pairs {
            let (image, result) = (Matrix::new(image, columns, pixels), MatrixMut::new(result, rows, pixels));
            multiply(result, Update::Replace, T::from_f64(self.scale), matrix, image, Threads::All);
        }
        result
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

impl Kernel3 for LowRankConv2d {
    const NAME: &'static str = "low-rank-conv2d";

    fn forward<T: Float>(&self, [x, down, up]: [View<'_, T>; 3]) -> Result<(Vec<T>, Shape)> {
        let placed = self.sizes.on((x.dims[2], x.dims[3]))?;
        let (batch, out_channels, rank) = (x.dims[0], up.dims[0], self.sizes.out_channels);
        let (height, width) = placed.output();
        let narrow = placed.forward(x.data, down.data, None, batch);
        let up = Matrix::new(up.data, out_channels, rank);
        let y = self.pointwise(up, (out_channels, rank), &narrow, height * width);
        Ok((y, (batch, out_channels, height, width).into()))
    }

    fn backward<T: Float>(
        &self,
        [x, down, up]: [View<'_, T>; 3],
        _: View<'_, T>,
        grad: View<'_, T>,
        wanted: Wanted,
    ) -> Result<[Vec<T>; 3]> {
        let placed = self.sizes.on((x.dims[2], x.dims[3]))?;
        let (batch, out_channels, rank) = (x.dims[0], up.dims[0], self.sizes.out_channels);
        let pixels = placed.output().0 * placed.output().1;
        let up = Matrix::new(up.data, out_channels, rank);
        let d_narrow = self.pointwise(up.t(), (rank, out_channels), grad.data, pixels);
        let when = |position: usize, f: &dyn Fn() -> Vec<T>| if wanted[position] { f() } else { Vec::new() };
        Ok([
            when(0, &|| placed.input_gradient(&d_narrow, down.data, batch)),
            when(1, &|| placed.weight_gradient(x.data, &d_narrow)),
            when(2, &|| {
                let narrow = placed.forward(x.data, down.data, None, batch);
                self.up_gradient(grad.data, &narrow, (out_channels, rank), pixels)
            }),
        ])
    }
}
