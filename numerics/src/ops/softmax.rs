//! Softmax.

use candle_core::{Result, Shape, Tensor};

use super::activation::on_processor;
use super::composed;
use crate::kernel::{Float, Kernel1, View, largest, map_rows, sum, sum_of_products, vectorized};

/// Softmax over the last dimension; `x: [..., n]`, minus infinity allowed as long as a row is not all of it.
///
/// **Gradient** to `x`.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    on_processor(x, Softmax, composed::softmax)
}

struct Softmax;

impl Kernel1 for Softmax {
    const NAME: &'static str = "softmax";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let (rows, width) = x.rows();
        let y = map_rows(rows, width, |first, y| {
            y.copy_from_slice(&x.data[first * width..][..y.len()]);
            for row in y.chunks_exact_mut(width) {
                softmax_row(row);
            }
        });
        Ok((y, x.dims.into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, y: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        let (rows, width) = x.rows();
        Ok(map_rows(rows, width, |first, dx| {
            for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
                let at = (first + row) * width;
                vectorized((&y.data[at..][..width], &grad.data[at..][..width], dx), row_backward);
            }
        }))
    }
}

/// Softmax in place; returns the logarithm of the sum of exponentials.
pub(super) fn softmax_row<T: Float>(row: &mut [T]) -> T {
    let (peak, total) = vectorized(row, row_forward);
    peak + total.ln()
}

/// The largest element, and the sum of exponentials of differences to it.
#[inline(always)]
fn row_forward<T: Float>(row: &mut [T]) -> (T, T) {
    let peak = largest(row);
    for x in row.iter_mut() {
        *x = (*x - peak).exp();
    }
    let total = T::from_f64(sum(row, |x| x));
    let factor = T::ONE / total;
    for x in row.iter_mut() {
        *x *= factor;
    }
    (peak, total)
}

/// `y · (grad − Σ grad · y)`.
#[inline(always)]
fn row_backward<T: Float>((y, grad, dx): (&[T], &[T], &mut [T])) {
    let dot = T::from_f64(sum_of_products(y, grad, |y, grad| y * grad));
    for (dx, (y, grad)) in dx.iter_mut().zip(y.iter().zip(grad)) {
        *dx = *y * (*grad - dot);
    }
}
