//! Convolutions with stride 1: one product per tap on the padded image, without an im2col matrix.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{Convolution, OnImages, area, fill_rows};
use crate::{Float, Matrix, MatrixMut, Threads, Update, multiply};

impl OnImages {
    pub(super) fn forward_by_taps<T: Float>(&self, x: &[T], weight: &[T], bias: Option<&[T]>, y: &mut [T]) {
        let Convolution { in_channels, out_channels, kernel, padding, .. } = self.of;
        let plane = Plane::padded(x, in_channels, self.input, (padding, padding));
        sum_over_taps(&plane, out_channels, self.output, kernel, bias, y, |row, column| {
            self.of.tap(weight, row * kernel.1 + column)
        });
    }

    /// The sum over taps on the output's gradients, with the taps reversed and their matrices transposed.
    pub(super) fn input_gradient_by_taps<T: Float>(&self, dy: &[T], weight: &[T], dx: &mut [T]) {
        let Convolution { in_channels, out_channels, kernel, padding, .. } = self.of;
        let margins = (kernel.0 - 1 - padding, kernel.1 - 1 - padding);
        let plane = Plane::padded(dy, out_channels, self.output, margins);
        sum_over_taps(&plane, in_channels, self.input, kernel, None, dx, |row, column| {
            self.of.tap(weight, (kernel.0 - 1 - row) * kernel.1 + kernel.1 - 1 - column).t()
        });
    }

    /// For each tap, the product of the gradients with the padded image from the tap's offset on. The gradients lie in
    /// rows as wide as the padded image, with zeros in the surplus.
    pub(super) fn add_weight_gradient_by_taps<T: Float>(&self, x: &[T], dy: &[T], dw: &mut [T]) {
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
}

impl Convolution {
    /// The matrix `[out, in]` of one tap in a taps-first weight.
    fn tap<'a, T>(&self, weight: &'a [T], tap: usize) -> Matrix<'a, T> {
        let row_stride = self.taps() * self.in_channels;
        let data = weight.get(tap * self.in_channels..).unwrap_or(&[]);
        Matrix::rows_apart(data, self.out_channels, self.in_channels, row_stride)
    }
}

/// Row and column of every tap, in the weight's order.
fn taps((height, width): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    (0..height).flat_map(move |row| (0..width).map(move |column| (row, column)))
}

/// Image channels with a margin of zeros.
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

    /// `count` pixels from `offset` on, for every channel.
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
    // Ends at the last valid pixel, because the last row's surplus would lie beyond the plane.
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
