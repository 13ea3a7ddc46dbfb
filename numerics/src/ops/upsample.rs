//! Nearest-neighbour resizing.

use candle_core::{Result, Shape, Tensor};
use rayon::prelude::*;

use super::composed::{self, widened};
use catelier_kernels::{Float, Kernel1, View, apply1};

/// Resizes `x: [batch, channels, height, width]` to `size` (height, width), up or down: output pixel `i` of `n` is a
/// copy of input pixel `⌊i · m / n⌋` of `m`.
///
/// **Gradient** to `x`: the sum over all copies of a pixel.
///
/// # Errors
/// For an empty `x` and a `size` that is not empty.
pub fn upsample_nearest(x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if (height == 0 && size.0 > 0) || (width == 0 && size.1 > 0) {
        candle_core::bail!("upsample: expected pixels to enlarge, found {height} by {width}");
    }
    if x.device().is_cpu() { widened(x, |x| apply1(x, Nearest { size })) } else { composed::upsample_nearest(x, size) }
}

struct Nearest {
    size: (usize, usize),
}

impl Kernel1 for Nearest {
    const NAME: &'static str = "upsample-nearest";

    fn forward<T: Float>(&self, x: View<'_, T>) -> Result<(Vec<T>, Shape)> {
        let (from, to) = ((x.dims[2], x.dims[3]), self.size);
        let shape = [x.dims[0], x.dims[1], to.0, to.1];
        let columns = sources(from.1, to.1);
        let mut y = vec![T::ZERO; shape.iter().product()];
        if !y.is_empty() {
            let planes = y.par_chunks_mut(to.0 * to.1).zip(x.data.par_chunks(from.0 * from.1));
            planes.for_each(|(y, x)| {
                for (row, y) in y.chunks_exact_mut(to.1).enumerate() {
                    let x = &x[row * from.0 / to.0 * from.1..][..from.1];
                    y.iter_mut().zip(&columns).for_each(|(y, column)| *y = x[*column]);
                }
            });
        }
        Ok((y, Shape::from(shape.as_slice())))
    }

    fn backward<T: Float>(&self, x: View<'_, T>, _: View<'_, T>, grad: View<'_, T>) -> Result<Vec<T>> {
        let (from, to) = ((x.dims[2], x.dims[3]), self.size);
        let columns = sources(from.1, to.1);
        let mut dx = vec![T::ZERO; x.data.len()];
        if !grad.data.is_empty() {
            let planes = dx.par_chunks_mut(from.0 * from.1).zip(grad.data.par_chunks(to.0 * to.1));
            planes.for_each(|(dx, grad)| {
                for (row, grad) in grad.chunks_exact(to.1).enumerate() {
                    let dx = &mut dx[row * from.0 / to.0 * from.1..][..from.1];
                    grad.iter().zip(&columns).for_each(|(grad, column)| dx[*column] += *grad);
                }
            });
        }
        Ok(dx)
    }
}

fn sources(from: usize, to: usize) -> Vec<usize> {
    (0..to).map(|i| i * from / to).collect()
}
