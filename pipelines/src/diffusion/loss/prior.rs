//! DreamBooth's prior preservation: the adapter must still predict images of the class.

use candle_core::{Result, Tensor};

use super::squared_difference;

/// Mean squared difference on an image of the class under the class prompt.
///
/// `class_pred`: the adapted prediction for latents of the class, with their own noise and timesteps; `class_target`:
/// their noise or velocity; both `[batch, channels, height, width]`. The result: `[batch]`. The caller multiplies it by
/// the prior weight (1 in the paper).
///
/// **Gradient**: to `class_pred`; `class_target` is detached.
///
/// **Source**: Ruiz et al. 2023, arXiv 2208.12242, equation 2.
///
/// # Errors
/// An error if the shapes differ.
pub fn prior_preservation(class_pred: &Tensor, class_target: &Tensor) -> Result<Tensor> {
    squared_difference(class_pred, &class_target.detach())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_value_is_the_mean_square_of_each_sample() {
        let pred = Tensor::new(&[[[[1.0_f64, 2.0]]], [[[0.0, 0.0]]]], &Device::Cpu).unwrap();
        let target = Tensor::new(&[[[[0.0_f64, 4.0]]], [[[3.0, 0.0]]]], &Device::Cpu).unwrap();
        let values = prior_preservation(&pred, &target).unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(values, [2.5, 4.5]);
    }
}
