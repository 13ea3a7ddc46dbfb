//! The weight-decomposed update (DoRA) of one module.

use candle_core::{DType, Tensor};
use catelier_numerics::ops::Decomposed;

use crate::error::{Error, Result};
use crate::factors::LoraFactors;

/// The weight-decomposed update of one module: the weight `W` becomes
/// `magnitude / ‖W + scale·up·down‖ · (W + scale·up·down)`. The norm is taken over the weights of each output; the bias
/// is unchanged.
///
/// **Source** DoRA, arXiv 2402.09353, equation 5.
#[derive(Debug, Clone)]
pub struct DoraFactors {
    /// The low-rank update of the direction: `down`, `up` and alpha.
    pub low_rank: LoraFactors,
    /// Norm of each output's weights in the adapted module, `[out]`. A fresh adapter has the norms of the base's
    /// weights.
    pub magnitude: Tensor,
}

impl DoraFactors {
    /// Pairs factors with magnitudes after checking that their shapes fit.
    ///
    /// # Errors
    /// [`Error::MagnitudeShape`] unless there is one magnitude for each row of `up`.
    pub fn new(low_rank: LoraFactors, magnitude: Tensor) -> Result<Self> {
        let outputs = low_rank.up.dims()[0];
        if magnitude.dims() != [outputs] {
            return Err(Error::MagnitudeShape { outputs, found: magnitude.dims().to_vec() });
        }
        Ok(Self { low_rank, magnitude })
    }

    /// The difference between the adapted weight and the base's `weight`, in f32: `[out, in]` or
    /// `[out, in, kernel, kernel]`.
    ///
    /// **Gradient** flows to the factors and the magnitudes. The norm counts as a constant, as section 4.3 of the paper
    /// proposes.
    ///
    /// # Errors
    /// [`Error::MergeShapes`] if the weight belongs to another module.
    pub fn delta(&self, weight: &Tensor) -> Result<Tensor> {
        let low_rank = self.low_rank.delta()?;
        if low_rank.dims() != weight.dims() {
            return Err(Error::MergeShapes { weight: weight.dims().to_vec(), update: low_rank.dims().to_vec() });
        }
        let delta = || {
            let weight = weight.to_dtype(DType::F32)?;
            let updated = (&weight + low_rank)?;
            let squares = updated.detach().flatten_from(1)?.to_dtype(DType::F64)?.sqr()?.sum(1)?;
            // A row of zero weights stays zero: dividing by 1 instead of its norm avoids NaN.
            let squares = squares.eq(0.0)?.where_cond(&squares.ones_like()?, &squares)?;
            let gain = (self.magnitude.to_dtype(DType::F32)? / squares.sqrt()?.to_dtype(DType::F32)?)?;
            let shape: Vec<usize> =
                (0..weight.rank()).map(|axis| if axis == 0 { gain.elem_count() } else { 1 }).collect();
            updated.broadcast_mul(&gain.reshape(shape)?)? - weight
        };
        delta().map_err(Error::tensor("forming the update"))
    }

    /// The update at `strength` in the form that a frozen layer's kernel takes.
    pub(crate) fn at(&self, strength: f64) -> Decomposed<'_> {
        let LoraFactors { down, up, .. } = &self.low_rank;
        Decomposed { down, up, magnitude: &self.magnitude, scale: self.low_rank.scale(), strength }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn factors(up: &[f32]) -> LoraFactors {
        LoraFactors::new(tensor(&[3., 0.], &[1, 2]), tensor(up, &[2, 1]), 1.0).unwrap()
    }

    #[test]
    fn rows_have_the_direction_of_the_sum_and_the_length_of_the_magnitude() {
        let dora = DoraFactors::new(factors(&[1., 0.]), tensor(&[10., 1.], &[2])).unwrap();
        let weight = tensor(&[0., 4., 0., 2.], &[2, 2]);
        let adapted = (dora.delta(&weight).unwrap() + weight).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(adapted, [vec![6., 8.], vec![0., 1.]]);
    }

    #[test]
    fn a_row_without_weights_stays_without() {
        let dora = DoraFactors::new(factors(&[0., 0.]), tensor(&[0., 5.], &[2])).unwrap();
        let delta = dora.delta(&tensor(&[0., 0., 0., 0.], &[2, 2])).unwrap();
        assert_eq!(delta.to_vec2::<f32>().unwrap(), [vec![0., 0.], vec![0., 0.]]);
    }

    #[test]
    fn there_is_one_magnitude_for_each_output() {
        let error = DoraFactors::new(factors(&[1., 0.]), tensor(&[1., 1., 1.], &[3])).unwrap_err();
        assert!(error.to_string().contains("[3]"), "{error}");
    }
}
