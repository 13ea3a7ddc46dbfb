//! Convolutions with any stride: an im2col matrix gathers the pixels under each tap; gradients are scattered back.

use std::ops::Range;

use rayon::prelude::*;

use super::{Convolution, OnImages, area, fill_rows};
use crate::{Float, Matrix, MatrixMut, Threads, Update, multiply};

impl OnImages {
    pub(super) fn forward_by_columns<T: Float>(&self, x: &[T], weight: &[T], bias: Option<&[T]>, y: &mut [T]) {
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

    pub(super) fn input_gradient_by_columns<T: Float>(&self, dy: &[T], weight: &[T], dx: &mut [T]) {
        let Convolution { in_channels, out_channels, .. } = self.of;
        let (depth, pixels) = (self.of.taps() * in_channels, area(self.output));
        let mut columns = vec![T::ZERO; depth * pixels];
        let (weight, dy) = (Matrix::new(weight, out_channels, depth), Matrix::new(dy, out_channels, pixels));
        multiply(MatrixMut::new(&mut columns, depth, pixels), Update::Replace, T::ONE, weight.t(), dy, Threads::All);
        // Each task owns one input channel and adds its taps in order, so that no two threads write one element.
        dx.par_chunks_mut(area(self.input).max(1)).enumerate().for_each(|(channel, dx)| {
            for tap in 0..self.of.taps() {
                let row = &columns[(tap * in_channels + channel) * pixels..][..pixels];
                self.for_pixels(tap, |source, pixel| dx[source] += row[pixel]);
            }
        });
    }

    pub(super) fn add_weight_gradient_by_columns<T: Float>(&self, x: &[T], dy: &[T], dw: &mut [T]) {
        let (out_channels, depth) = (self.of.out_channels, self.of.taps() * self.of.in_channels);
        let columns = self.columns(x);
        let (dy, columns) =
            (Matrix::new(dy, out_channels, area(self.output)), Matrix::new(&columns, depth, area(self.output)));
        multiply(MatrixMut::new(dw, out_channels, depth), Update::Add, T::ONE, dy, columns.t(), Threads::All);
    }

    /// The im2col matrix `[kh, kw, in, oh, ow]`: for each tap and channel, the pixel under that tap at every output
    /// position.
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

    /// Calls `f(index in the input, index in the output)` wherever the tap lies on the image and not on padding.
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

    /// Output positions along one side at which the tap lies on the image.
    fn inside(&self, tap: usize, input: usize, output: usize) -> Range<usize> {
        let Convolution { stride, padding, .. } = self.of;
        let first = padding.saturating_sub(tap).div_ceil(stride);
        let end = (input + padding).saturating_sub(tap).div_ceil(stride).min(output);
        first..end.max(first)
    }
}
