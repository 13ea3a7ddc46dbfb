//! Convolution as matrix products, with the gradients of its input and of its weight.
//!
//! Weights are *taps-first*: `[out, kh, kw, in]`, so that the matrix of one tap has adjacent input channels.
//!
//! With stride 1 no column matrix is built. The image is padded once; the whole output is then the sum over taps of
//! (matrix of the tap) · (padded image from the tap's offset on), where rows of the result are as wide as the padded
//! image and the surplus at the end of each row is dropped. Other strides gather columns (`im2col`) first.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::{Float, Matrix, MatrixMut, Threads, Update, multiply};

/// What a convolution is, apart from its weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Convolution {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    /// Height and width.
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

/// A convolution of images of one size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sized {
    of: Convolution,
    input: (usize, usize),
    output: (usize, usize),
}

impl Convolution {
    /// For images of that height and width.
    ///
    /// **Errors** if the padded image is smaller than the kernel, or empty.
    pub(crate) fn on(&self, input: (usize, usize)) -> Result<Sized> {
        let side = |size: usize, kernel: usize| match (size + 2 * self.padding).checked_sub(kernel) {
            Some(room) if kernel > 0 && size > 0 => Ok(room / self.stride + 1),
            _ => bail!(
                "conv2d: a side of {size} pixels and padding {} is too short for a kernel of {kernel}",
                self.padding
            ),
        };
        let output = (side(input.0, self.kernel.0)?, side(input.1, self.kernel.1)?);
        Ok(Sized { of: *self, input, output })
    }

    fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// The matrix `[out, in]` of one tap of a taps-first weight.
    fn tap<'a, T>(&self, weight: &'a [T], tap: usize) -> Matrix<'a, T> {
        let row_stride = self.taps() * self.in_channels;
        let data = weight.get(tap * self.in_channels..).unwrap_or(&[]);
        Matrix::rows_apart(data, self.out_channels, self.in_channels, row_stride)
    }
}

fn area((height, width): (usize, usize)) -> usize {
    height * width
}

impl Sized {
    /// Height and width of the output.
    pub(crate) fn output(&self) -> (usize, usize) {
        self.output
    }

    /// `y: [batch, out, oh, ow]` from `x: [batch, in, h, w]`.
    pub(crate) fn forward<T: Float>(&self, x: &[T], weight: &[T], bias: Option<&[T]>, batch: usize) -> Vec<T> {
        let Convolution { in_channels, out_channels, .. } = self.of;
        let mut y = vec![T::ZERO; batch * out_channels * area(self.output)];
        let images =
            images(x, in_channels * area(self.input)).zip(images_mut(&mut y, out_channels * area(self.output)));
        for (x, y) in images {
            if self.of.stride == 1 {
                self.forward_by_taps(x, weight, bias, y);
            } else {
                self.forward_by_columns(x, weight, bias, y);
            }
        }
        y
    }

    /// `dx: [batch, in, h, w]` from `dy: [batch, out, oh, ow]`.
    pub(crate) fn input_gradient<T: Float>(&self, dy: &[T], weight: &[T], batch: usize) -> Vec<T> {
        let Convolution { in_channels, out_channels, .. } = self.of;
        let mut dx = vec![T::ZERO; batch * in_channels * area(self.input)];
        let images =
            images(dy, out_channels * area(self.output)).zip(images_mut(&mut dx, in_channels * area(self.input)));
        for (dy, dx) in images {
            if self.turns_around() {
                self.input_gradient_by_taps(dy, weight, dx);
            } else {
                self.input_gradient_by_columns(dy, weight, dx);
            }
        }
        dx
    }

    /// Taps-first `dw: [out, kh, kw, in]`, summed over the batch.
    pub(crate) fn weight_gradient<T: Float>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        let Convolution { in_channels, out_channels, .. } = self.of;
        let mut dw = vec![T::ZERO; out_channels * self.of.taps() * in_channels];
        let images = images(x, in_channels * area(self.input)).zip(images(dy, out_channels * area(self.output)));
        for (x, dy) in images {
            if self.of.stride == 1 {
                self.add_weight_gradient_by_taps(x, dy, &mut dw);
            } else {
                self.add_weight_gradient_by_columns(x, dy, &mut dw);
            }
        }
        dw
    }

    fn forward_by_taps<T: Float>(&self, x: &[T], weight: &[T], bias: Option<&[T]>, y: &mut [T]) {
        let Convolution { in_channels, out_channels, kernel, padding, .. } = self.of;
        let plane = Plane::padded(x, in_channels, self.input, (padding, padding));
        sum_over_taps(&plane, out_channels, self.output, kernel, bias, y, |row, column| {
            self.of.tap(weight, row * kernel.1 + column)
        });
    }

    /// Whether the gradient of the input is a convolution by taps too: its padding must not be negative.
    fn turns_around(&self) -> bool {
        let Convolution { kernel, stride, padding, .. } = self.of;
        stride == 1 && padding < kernel.0 && padding < kernel.1
    }

    /// The same sum with the image of gradients, the taps in reverse, and their matrices transposed.
    fn input_gradient_by_taps<T: Float>(&self, dy: &[T], weight: &[T], dx: &mut [T]) {
        let Convolution { in_channels, out_channels, kernel, padding, .. } = self.of;
        let margins = (kernel.0 - 1 - padding, kernel.1 - 1 - padding);
        let plane = Plane::padded(dy, out_channels, self.output, margins);
        sum_over_taps(&plane, in_channels, self.input, kernel, None, dx, |row, column| {
            self.of.tap(weight, (kernel.0 - 1 - row) * kernel.1 + kernel.1 - 1 - column).t()
        });
    }

    /// The gradients in rows as wide as the padded image, zero in the surplus, times the image from each offset on.
    fn add_weight_gradient_by_taps<T: Float>(&self, x: &[T], dy: &[T], dw: &mut [T]) {
        let Convolution { in_channels, out_channels, kernel, padding, .. } = self.of;
        let plane = Plane::padded(x, in_channels, self.input, (padding, padding));
        let (row_width, (height, width)) = (plane.size.1, self.output);
        let mut wide = vec![T::ZERO; out_channels * height * row_width];
        for (wide, dy) in wide.chunks_exact_mut(row_width).zip(dy.chunks_exact(width)) {
            wide[..width].copy_from_slice(dy);
        }
        let (count, depth) = ((height - 1) * row_width + width, self.of.taps() * in_channels);
        for (tap, (row, column)) in taps(kernel).enumerate() {
            let result = &mut dw[tap * in_channels..];
            let result = MatrixMut::rows_apart(result, out_channels, in_channels, depth);
            let wide = Matrix::rows_apart(&wide, out_channels, count, height * row_width);
            let pixels = plane.from(row * row_width + column, count);
            multiply(result, Update::Add, T::ONE, wide, pixels.t(), Threads::All);
        }
    }

    fn add_weight_gradient_by_columns<T: Float>(&self, x: &[T], dy: &[T], dw: &mut [T]) {
        let (out_channels, depth) = (self.of.out_channels, self.of.taps() * self.of.in_channels);
        let columns = self.columns(x);
        let (dy, columns) =
            (Matrix::new(dy, out_channels, area(self.output)), Matrix::new(&columns, depth, area(self.output)));
        multiply(MatrixMut::new(dw, out_channels, depth), Update::Add, T::ONE, dy, columns.t(), Threads::All);
    }

    fn forward_by_columns<T: Float>(&self, x: &[T], weight: &[T], bias: Option<&[T]>, y: &mut [T]) {
        let (out_channels, depth) = (self.of.out_channels, self.of.taps() * self.of.in_channels);
        let columns = self.columns(x);
        fill_rows(y, area(self.output), bias);
        let (weight, columns) =
            (Matrix::new(weight, out_channels, depth), Matrix::new(&columns, depth, area(self.output)));
        multiply(
            MatrixMut::new(y, out_channels, area(self.output)),
            Update::Add,
            T::ONE,
            weight,
            columns,
            Threads::All,
        );
    }

    fn input_gradient_by_columns<T: Float>(&self, dy: &[T], weight: &[T], dx: &mut [T]) {
        let Convolution { in_channels, out_channels, .. } = self.of;
        let (depth, pixels) = (self.of.taps() * in_channels, area(self.output));
        let mut columns = vec![T::ZERO; depth * pixels];
        let (weight, dy) = (Matrix::new(weight, out_channels, depth), Matrix::new(dy, out_channels, pixels));
        multiply(MatrixMut::new(&mut columns, depth, pixels), Update::Replace, T::ONE, weight.t(), dy, Threads::All);
        // Each input channel adds up its taps in order, so threads never meet.
        dx.par_chunks_mut(area(self.input).max(1)).enumerate().for_each(|(channel, dx)| {
            for tap in 0..self.of.taps() {
                let row = &columns[(tap * in_channels + channel) * pixels..][..pixels];
                self.for_pixels(tap, |source, pixel| dx[source] += row[pixel]);
            }
        });
    }

    /// `[kh, kw, in, oh, ow]`: for each tap and channel, the pixel under that tap at every output position.
    fn columns<T: Float>(&self, x: &[T]) -> Vec<T> {
        let (in_channels, pixels) = (self.of.in_channels, area(self.output));
        let mut columns = vec![T::ZERO; self.of.taps() * in_channels * pixels];
        columns.par_chunks_mut(pixels).enumerate().for_each(|(row, column)| {
            let (tap, channel) = (row / in_channels, row % in_channels);
            let x = &x[channel * area(self.input)..][..area(self.input)];
            self.for_pixels(tap, |source, pixel| column[pixel] = x[source]);
        });
        columns
    }

    /// Runs `f(index in the input, index in the output)` wherever the tap falls on the image and not on padding.
    #[inline(always)]
    fn for_pixels(&self, tap: usize, mut f: impl FnMut(usize, usize)) {
        let Convolution { kernel, stride, padding, .. } = self.of;
        let (row_tap, column_tap) = (tap / kernel.1, tap % kernel.1);
        let columns = self.inside(column_tap, self.input.1, self.output.1);
        for row in self.inside(row_tap, self.input.0, self.output.0) {
            let source = (row * stride + row_tap - padding) * self.input.1;
            for column in columns.clone() {
                f(source + column * stride + column_tap - padding, row * self.output.1 + column);
            }
        }
    }

    /// Output positions along one side at which the tap falls on the image.
    fn inside(&self, tap: usize, input: usize, output: usize) -> Range<usize> {
        let Convolution { stride, padding, .. } = self.of;
        let first = padding.saturating_sub(tap).div_ceil(stride);
        let end = (input + padding).saturating_sub(tap).div_ceil(stride).min(output);
        first..end.max(first)
    }
}

/// Row and column of every tap, in the order of the weight.
fn taps((height, width): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    (0..height).flat_map(move |row| (0..width).map(move |column| (row, column)))
}

/// The images of a batch; none if they are empty.
fn images<T>(data: &[T], size: usize) -> std::slice::ChunksExact<'_, T> {
    data.chunks_exact(size.max(1))
}

fn images_mut<T>(data: &mut [T], size: usize) -> std::slice::ChunksExactMut<'_, T> {
    data.chunks_exact_mut(size.max(1))
}

/// Channels of pixels with a margin of zeros.
struct Plane<'a, T: Float> {
    data: Cow<'a, [T]>,
    channels: usize,
    size: (usize, usize),
}

impl<'a, T: Float> Plane<'a, T> {
    /// Borrows the image if there is no margin.
    fn padded(image: &'a [T], channels: usize, (height, width): (usize, usize), margins: (usize, usize)) -> Self {
        let size = (height + 2 * margins.0, width + 2 * margins.1);
        if margins == (0, 0) {
            return Self { data: Cow::Borrowed(image), channels, size };
        }
        let mut data = vec![T::ZERO; channels * area(size)];
        let planes = data.par_chunks_mut(area(size)).zip(image.par_chunks(area((height, width)).max(1)));
        planes.for_each(|(padded, image)| {
            for (row, pixels) in image.chunks_exact(width).enumerate() {
                padded[(row + margins.0) * size.1 + margins.1..][..width].copy_from_slice(pixels);
            }
        });
        Self { data: Cow::Owned(data), channels, size }
    }

    /// All pixels from `offset` on, as many as `count`, channel by channel.
    fn from(&self, offset: usize, count: usize) -> Matrix<'_, T> {
        let data = self.data.get(offset..).unwrap_or(&[]);
        Matrix::rows_apart(data, self.channels, count, area(self.size))
    }
}

/// `y[c, i, j] = bias[c] + Σ matrix(row, column) · plane[:, i + row, j + column]`.
fn sum_over_taps<'a, T: Float>(
    plane: &Plane<'_, T>,
    channels: usize,
    (height, width): (usize, usize),
    kernel: (usize, usize),
    bias: Option<&[T]>,
    y: &mut [T],
    matrix: impl Fn(usize, usize) -> Matrix<'a, T>,
) {
    if y.is_empty() {
        return;
    }
    let row_width = plane.size.1;
    // Up to the last pixel that counts; the surplus of the last row would lie beyond the plane.
    let count = (height - 1) * row_width + width;
    let mut surplus = Vec::new();
    let sums: &mut [T] = if row_width == width {
        y
    } else {
        surplus.resize(channels * height * row_width, T::ZERO);
        &mut surplus
    };
    fill_rows(sums, height * row_width, bias);
    for (row, column) in taps(kernel) {
        let result = MatrixMut::rows_apart(sums, channels, count, height * row_width);
        let pixels = plane.from(row * row_width + column, count);
        multiply(result, Update::Add, T::ONE, matrix(row, column), pixels, Threads::All);
    }
    if row_width != width {
        drop_surplus(&surplus, row_width, width, y);
    }
}

fn drop_surplus<T: Float>(wide: &[T], row_width: usize, width: usize, y: &mut [T]) {
    for (wide, y) in wide.chunks_exact(row_width).zip(y.chunks_exact_mut(width)) {
        y.copy_from_slice(&wide[..width]);
    }
}

fn fill_rows<T: Float>(rows: &mut [T], width: usize, values: Option<&[T]>) {
    match values {
        Some(values) => rows.chunks_exact_mut(width).zip(values).for_each(|(row, value)| row.fill(*value)),
        None => rows.fill(T::ZERO),
    }
}
