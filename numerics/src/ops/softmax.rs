//! Softmax.

use candle_core::{Result, Shape, Tensor};

use super::activation::on_cpu;
use super::device;
use catelier_kernels::{
    Float, Kernel1, Loop, Simd, View, largest, map_rows, replace_and_sum, sum_of_products, vectorized,
};

/// Softmax over the last dimension of `x: [..., n]`. Elements may be minus infinity, but not all elements of a row.
///
/// **Gradient** to `x`.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    on_cpu(x, Softmax, device::softmax)
}

struct Softmax;

impl Kernel1 for Softmax {
    const NAME: &'static str = "softmax";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let (rows, width) = x.rows();
        let y = map_rows(rows, width, |first, y| {
            y.copy_from_slice(&x.data[first * width..][..y.len()]);
            for row in y.chunks_exact_mut(width) {
                vectorized::<SoftmaxRow, _>(row);
            }
        });
        Ok((y, x.dims.into()))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, y: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        let (rows, width) = x.rows();
        Ok(map_rows(rows, width, |first, dx| {
            for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
                let at = (first + row) * width;
                vectorized::<SoftmaxRowBackward, _>((&y.data[at..][..width], &grad.data[at..][..width], dx));
            }
        }))
    }
}

/// Softmax in place.
struct SoftmaxRow;

impl<T: Float> Loop<&mut [T]> for SoftmaxRow {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(simd: S, row: &mut [T]) {
        let (_, total) = Exponentials::run(simd, row);
        let factor = T::ONE / total;
        for x in row.iter_mut() {
            *x *= factor;
        }
    }
}

/// Replaces `x` by `exp(x − max)`; returns the maximum and the sum of the exponentials.
pub(super) struct Exponentials;

impl<T: Float> Loop<&mut [T]> for Exponentials {
    type Output = (T, T);

    #[inline(always)]
    fn run<S: Simd>(_: S, row: &mut [T]) -> (T, T) {
        let peak = largest(row);
        let total = replace_and_sum(row, |x| (x - peak).exp::<S>());
        (peak, T::from_f64(total))
    }
}

/// `dx = y · (grad − Σ grad · y)`.
struct SoftmaxRowBackward;

impl<T: Float> Loop<(&[T], &[T], &mut [T])> for SoftmaxRowBackward {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(_: S, (y, grad, dx): (&[T], &[T], &mut [T])) {
        let dot = T::from_f64(sum_of_products(y, grad, |y, grad| y * grad));
        for (dx, (y, grad)) in dx.iter_mut().zip(y.iter().zip(grad)) {
            *dx = *y * (*grad - dot);
        }
    }
}
