//! Convolution as matrix products, with the gradients of its input and of its weight.
//!
//! Weights are *taps-first*: `[out, kh, kw, in]`, so that the matrix of one tap has contiguous input channels.
//!
//! Three methods. With stride 1, no im2col matrix is built: the image is padded once, and the output is the sum over
//! taps of (matrix of the tap) · (padded image from the tap's offset on). Rows of this result are as wide as the padded
//! image; the surplus at the end of each row is dropped. For 3 × 3 kernels with stride 1 on large maps, Winograd's
//! method needs a quarter of the products. Other strides gather columns (im2col) first.

mod by_columns;
mod by_taps;
mod by_tiles;

use candle_core::{Result, bail};

use super::{Float, Frame, Window, single, single_mut};
pub use by_tiles::scratch_bytes;

/// The sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct Convolution {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the kernel.
    pub kernel: (usize, usize),
    /// Pixels from one window to the next, in both directions.
    pub stride: usize,
    /// Pixels of zeros on every side.
    pub padding: usize,
}

/// A convolution with the sizes of its input and output images.
#[derive(Debug, Clone, Copy)]
pub struct OnImages {
    of: Convolution,
    input: (usize, usize),
    output: (usize, usize),
}

impl Convolution {
    /// Sets the size of the input images, `input` (height, width).
    ///
    /// # Errors
    /// If the padded image is smaller than the kernel, or empty.
    pub fn on(&self, input: (usize, usize)) -> Result<OnImages> {
        let side = |size: usize, kernel: usize| match (size + 2 * self.padding).checked_sub(kernel) {
            Some(room) if kernel > 0 && size > 0 => Ok(room / self.stride + 1),
            _ => bail!(
                "conv2d: a side of {size} pixels and padding {} is too short for a kernel of {kernel}",
                self.padding
            ),
        };
        let output = (side(input.0, self.kernel.0)?, side(input.1, self.kernel.1)?);
        Ok(OnImages { of: *self, input, output })
    }

    fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }
}

fn area((height, width): (usize, usize)) -> usize {
    height * width
}

impl OnImages {
    /// Height and width of the output.
    #[must_use]
    pub fn output(&self) -> (usize, usize) {
        self.output
    }

    /// The window of the convolution, over the input in [`frame`](Self::frame).
    pub fn window(&self) -> Window {
        Window { kernel: self.of.kernel, stride: self.of.stride, output: self.output }
    }

    /// The frame of the input: the image with margins of zeros.
    pub fn frame(&self) -> Frame {
        let (Convolution { padding, .. }, (height, width)) = (self.of, self.input);
        let origin = (padding as isize, padding as isize);
        Frame { size: (height + 2 * padding, width + 2 * padding), origin, spread: 1 }
    }

    /// The window of the gradient: over the output's gradients in [`backward_frame`](Self::backward_frame), with the
    /// transposed weight, it gives the gradients of the input.
    pub fn backward_window(&self) -> Window {
        Window { kernel: self.of.kernel, stride: 1, output: self.input }
    }

    /// The frame of the output's gradients: they lie `stride` pixels apart, with zeros between and around them.
    pub fn backward_frame(&self) -> Frame {
        let Convolution { kernel, padding, stride, .. } = self.of;
        let origin = |kernel: usize| kernel as isize - 1 - padding as isize;
        let size = (self.input.0 + kernel.0 - 1, self.input.1 + kernel.1 - 1);
        Frame { size, origin: (origin(kernel.0), origin(kernel.1)), spread: stride }
    }

    /// The output `y: [batch, out, oh, ow]` for `x: [batch, in, h, w]`.
    pub fn forward<T: Float>(&self, x: &[T], weight: &[T], bias: Option<&[T]>, batch: usize) -> Vec<T> {
        let Convolution { in_channels, out_channels, .. } = self.of;
        let mut y = vec![T::ZERO; batch * out_channels * area(self.output)];
        let images =
            images(x, in_channels * area(self.input)).zip(images_mut(&mut y, out_channels * area(self.output)));
        for (x, y) in images {
            if self.goes_by_tiles::<T>(self.output) {
                self.forward_by_tiles(single(x), single(weight), bias.map(single), single_mut(y));
            } else if self.of.stride == 1 {
                self.forward_by_taps(x, weight, bias, y);
            } else {
                self.forward_by_columns(x, weight, bias, y);
            }
        }
        y
    }

    /// The gradient `dx: [batch, in, h, w]` for `dy: [batch, out, oh, ow]`.
    pub fn input_gradient<T: Float>(&self, dy: &[T], weight: &[T], batch: usize) -> Vec<T> {
        let Convolution { in_channels, out_channels, .. } = self.of;
        let mut dx = vec![T::ZERO; batch * in_channels * area(self.input)];
        let images =
            images(dy, out_channels * area(self.output)).zip(images_mut(&mut dx, in_channels * area(self.input)));
        for (dy, dx) in images {
            if self.goes_by_tiles::<T>(self.input) {
                self.input_gradient_by_tiles(single(dy), single(weight), single_mut(dx));
            } else if self.backward_goes_by_taps() {
                self.input_gradient_by_taps(dy, weight, dx);
            } else {
                self.input_gradient_by_columns(dy, weight, dx);
            }
        }
        dx
    }

    /// The taps-first gradient `dw: [out, kh, kw, in]`, summed over the batch.
    pub fn weight_gradient<T: Float>(&self, x: &[T], dy: &[T]) -> Vec<T> {
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

    /// Whether the gradient of the input can be computed by taps: the padding of that convolution must not be negative.
    fn backward_goes_by_taps(&self) -> bool {
        let Convolution { kernel, stride, padding, .. } = self.of;
        stride == 1 && padding < kernel.0 && padding < kernel.1
    }
}

/// Splits a batch into images; an empty image gives none.
fn images<T>(data: &[T], size: usize) -> std::slice::ChunksExact<'_, T> {
    data.chunks_exact(size.max(1))
}

fn images_mut<T>(data: &mut [T], size: usize) -> std::slice::ChunksExactMut<'_, T> {
    data.chunks_exact_mut(size.max(1))
}

fn fill_rows<T: Float>(rows: &mut [T], width: usize, values: Option<&[T]>) {
    match values {
        Some(values) => rows.chunks_exact_mut(width).zip(values).for_each(|(row, value)| row.fill(*value)),
        None => rows.fill(T::ZERO),
    }
}
