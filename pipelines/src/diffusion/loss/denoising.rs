//! The denoising loss and its weighting over timesteps.

use candle_core::{Result, Tensor};

use super::squared_difference;
use crate::diffusion::{NoiseSchedule, Prediction};

/// Mean squared difference between the prediction and its target.
///
/// `noise_pred`, `target`: `[batch, channels, height, width]`; the result: `[batch]`. `target` is
/// [`NoiseSchedule::target`], the noise or the velocity.
///
/// **Gradient**: to `noise_pred`, `2 (noise_pred - target) / elements of a sample`. `target` is
/// detached.
///
/// **Source**: Ho et al. 2020, arXiv 2006.11239, equation 14.
///
/// An error if the shapes differ.
/// When the shapes differ.
pub fn denoising(noise_pred: &Tensor, target: &Tensor) -> Result<Tensor> {
    squared_difference(noise_pred, &target.detach())
}

/// `w(t)` of min-SNR weighting, one value per timestep; `gamma` is 5 in the paper.
///
/// `min(SNR, gamma) / SNR` for a model that predicts the noise, `min(SNR, gamma) / (SNR + 1)` for one that predicts the
/// velocity. At zero SNR the weights are 1 and 0. A timestep beyond the schedule takes the weight of the last one.
///
/// **Source**: Hang et al. 2023, arXiv 2303.09556, section 3.4.
pub fn min_snr_weight(schedule: &NoiseSchedule, timesteps: &[u32], gamma: f64) -> Vec<f64> {
    let signals = schedule.alphas_cumprod();
    let weight = |timestep: &u32| {
        let signal = signals[(*timestep as usize).min(signals.len() - 1)];
        let snr = signal / (1.0 - signal);
        match schedule.prediction() {
            Prediction::Epsilon if snr <= gamma => 1.0,
            Prediction::Epsilon => gamma / snr,
            Prediction::Velocity => snr.min(gamma) / (snr + 1.0),
        }
    };
    timesteps.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use catelier_testkit::close::assert_numbers_close;
    use catelier_testkit::tolerance::Tolerance;

    use super::*;
    use crate::diffusion::SchedulerConfig;

    fn schedule(prediction_type: Prediction) -> NoiseSchedule {
        let rescale_betas_zero_snr = true;
        let config = SchedulerConfig { prediction_type, rescale_betas_zero_snr, ..SchedulerConfig::default() };
        NoiseSchedule::from_config(&config).unwrap()
    }

    #[test]
    fn min_snr_leaves_noisy_timesteps_alone_and_damps_clean_ones() {
        let schedule = schedule(Prediction::Epsilon);
        let clean = 5.0 / schedule.snr(10).unwrap();
        let weights = min_snr_weight(&schedule, &[10, 900, 999], 5.0);
        assert_numbers_close("weights", &weights, &[clean, 1.0, 1.0], Tolerance::Absolute(1e-12));
    }

    #[test]
    fn min_snr_of_a_velocity_divides_by_snr_plus_one() {
        let schedule = schedule(Prediction::Velocity);
        let (clean, noisy) = (schedule.snr(10).unwrap(), schedule.snr(900).unwrap());
        let weights = min_snr_weight(&schedule, &[10, 900, 999], 5.0);
        let expected = [5.0 / (clean + 1.0), noisy / (noisy + 1.0), 0.0];
        assert_numbers_close("weights", &weights, &expected, Tolerance::Absolute(1e-12));
    }
}
