//! The CAT term: without the trigger, the adapter must not change the prediction.

use candle_core::{Result, Tensor};

use super::squared_difference;

/// Mean squared difference between the adapted and the frozen prediction, both without trigger.
///
/// ```text
/// || eps_adapted(z_t, t, caption without trigger) - stop_gradient eps_base(z_t, t, same caption) ||²
/// ```
///
/// `adapted`, `base`: `[batch, channels, height, width]`; the result: `[batch]`. Both predictions take the latents,
/// noise and timesteps of the denoising term; the caller multiplies the result by the same `w(t)` and by the CAT weight
/// (1 in the paper's code). A fresh adapter predicts the same as the base, so the term starts at exactly 0 with
/// gradient 0.
///
/// **Gradient**: to `adapted` only; this function detaches `base`.
///
/// **Source**: Contrastive Adapter Training, arXiv 2404.07554.
///
/// # Errors
/// An error if the shapes differ.
pub fn cat(adapted: &Tensor, base: &Tensor) -> Result<Tensor> {
    squared_difference(adapted, &base.detach())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use catelier_testkit::close::assert_close;
    use catelier_testkit::tolerance::Tolerance;

    use super::*;
    use crate::diffusion::loss::denoising;

    const SHAPE: (usize, usize, usize, usize) = (2, 1, 2, 3);

    fn variable(offset: f64) -> Var {
        let values: Vec<f64> = (0..12).map(|index| (f64::from(index) * 0.7 + offset).sin()).collect();
        Var::from_tensor(&Tensor::from_vec(values, SHAPE, &Device::Cpu).unwrap()).unwrap()
    }

    #[test]
    fn an_adapter_that_changes_nothing_has_no_loss_and_no_gradient() {
        let adapted = variable(0.3);
        let base = adapted.as_tensor().detach();
        let values = cat(&adapted, &base).unwrap();
        assert_eq!(values.to_vec1::<f64>().unwrap(), [0.0, 0.0]);
        let gradients = values.mean_all().unwrap().backward().unwrap();
        let zero = adapted.zeros_like().unwrap();
        assert_close("gradient", gradients.get(&adapted).unwrap(), &zero, Tolerance::Exact);
    }

    #[test]
    fn the_base_prediction_is_given_no_gradient() {
        let (adapted, base) = (variable(0.3), variable(1.1));
        let gradients = cat(&adapted, &base).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&base).is_none());
        assert!(gradients.get(&adapted).is_some());
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let (adapted, base) = (variable(0.3), variable(1.1));
        let total = |adapted: &Tensor| cat(adapted, &base).unwrap().sum_all().unwrap();
        let gradients = total(&adapted).backward().unwrap();
        let step = 1e-6;
        let mut slopes = Vec::new();
        for index in 0..12 {
            let mut nudge = vec![0.0_f64; 12];
            nudge[index] = step;
            let nudge = Tensor::from_vec(nudge, SHAPE, &Device::Cpu).unwrap();
            let above = total(&(adapted.as_tensor() + &nudge).unwrap()).to_scalar::<f64>().unwrap();
            let below = total(&(adapted.as_tensor() - &nudge).unwrap()).to_scalar::<f64>().unwrap();
            slopes.push((above - below) / (2.0 * step));
        }
        let slopes = Tensor::from_vec(slopes, SHAPE, &Device::Cpu).unwrap();
        assert_close("gradient", gradients.get(&adapted).unwrap(), &slopes, Tolerance::Absolute(1e-8));
    }

    #[test]
    fn each_sample_has_its_own_value() {
        let (adapted, base) = (variable(0.3), variable(1.1));
        let together = cat(&adapted, &base).unwrap();
        let row = |tensor: &Tensor| tensor.narrow(0, 1, 1).unwrap();
        let alone = cat(&row(&adapted), &row(&base)).unwrap();
        assert_close("second sample", &together.narrow(0, 1, 1).unwrap(), &alone, Tolerance::Exact);
    }

    #[test]
    fn denoising_gives_its_target_no_gradient() {
        let (pred, target) = (variable(0.3), variable(1.1));
        let gradients = denoising(&pred, &target).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&target).is_none() && gradients.get(&pred).is_some());
    }
}
