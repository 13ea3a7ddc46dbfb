//! Low-rank updates of frozen layers: the trainable part, as one node of the graph.

use candle_core::{DType, Result, Shape, Tensor};

use super::conv::{check_channels, taps_first};
use super::elsewhere;
use super::layer::LowRank;
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
    check_low_rank(x, down, up)?;
    together(x, down, up, |x, down, up| {
        if x.device().is_cpu() {
            let mut output = x.dims().to_vec();
            output[x.rank() - 1] = up.dims()[0];
            apply3(x, down, up, Alone { update: LowRankLinear { scale }, output: output.into() })
        } else {
            elsewhere::low_rank_linear(x, down, up, scale)
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
    let sizes = low_rank_sizes(x, down, up, stride, padding)?;
    together(x, down, up, |x, down, up| {
        if x.device().is_cpu() {
            // The reordering is a node of candle's, which routes the gradient back to `down`.
            let size = sizes.on((x.dims()[2], x.dims()[3]))?.output();
            let output = (x.dims()[0], up.dims()[0], size.0, size.1).into();
            apply3(x, &taps_first(down)?, up, Alone { update: LowRankConv2d { scale, sizes }, output })
        } else {
            elsewhere::low_rank_conv2d(x, down, up, scale, sizes)
        }
    })
}

/// The convolution to few channels.
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

/// An update as a layer of its own.
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
        wanted: Wanted,
    ) -> Result<[Vec<T>; 3]> {
        let dx = if wanted[0] { vec![T::ZERO; arguments[0].data.len()] } else { Vec::new() };
        self.update.backward(arguments, grad, wanted, dx)
    }
}

pub(super) struct LowRankLinear {
    pub(super) scale: f64,
}

impl LowRank for LowRankLinear {
    fn add_to<T: Float>(&self, [x, down, up]: [View<'_, T>; 3], y: &mut [T]) -> Result<()> {
        let ((rows, in_features), rank, out_features) = (x.rows(), down.dims[0], up.dims[0]);
        let (x, down) = (Matrix::new(x.data, rows, in_features), Matrix::new(down.data, rank, in_features));
        let narrow = product(rows, rank, T::ONE, x, down.t());
        let (narrow, up) = (Matrix::new(&narrow, rows, rank), Matrix::new(up.data, out_features, rank));
        add_product(y, (rows, out_features), T::from_f64(self.scale), narrow, up.t());
        Ok(())
    }

    fn backward<T: Float>(
        &self,
        [x, down, up]: [View<'_, T>; 3],
        grad: View<'_, T>,
        wanted: Wanted,
        mut dx: Vec<T>,
    ) -> Result<[Vec<T>; 3]> {
        let ((rows, in_features), rank, out_features) = (x.rows(), down.dims[0], up.dims[0]);
        let scale = T::from_f64(self.scale);
        let x = Matrix::new(x.data, rows, in_features);
        let down = Matrix::new(down.data, rank, in_features);
        let up = Matrix::new(up.data, out_features, rank);
        let grad = Matrix::new(grad.data, rows, out_features);

        let d_narrow = product(rows, rank, scale, grad, up);
        let d_narrow = Matrix::new(&d_narrow, rows, rank);
        if wanted[0] {
            add_product(&mut dx, (rows, in_features), T::ONE, d_narrow, down);
        }
        let when = |position: usize, f: &dyn Fn() -> Vec<T>| if wanted[position] { f() } else { Vec::new() };
        Ok([
            dx,
            when(1, &|| product(rank, in_features, T::ONE, d_narrow.t(), x)),
            when(2, &|| {
                let narrow = product(rows, rank, T::ONE, x, down.t());
                product(out_features, rank, scale, grad.t(), Matrix::new(&narrow, rows, rank))
            }),
        ])
    }
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
        wanted: Wanted,
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
