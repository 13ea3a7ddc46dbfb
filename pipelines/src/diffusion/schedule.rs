//! The noise schedule of a base model.

use candle_core::{DType, Tensor};
use catelier_adapters::Prediction;

use super::config::{BetaSchedule, MOST_TIMESTEPS, SchedulerConfig};
use crate::error::{Error, Result};
use crate::models::files::ModelFiles;

/// Lower limit of the share of signal in divisions: at zero terminal SNR the latents contain no `z_0`, and this
/// replaces the zero.
pub(crate) const SMALLEST_SIGNAL: f64 = 1.0 / (1 << 24) as f64;

/// Betas and their products, with the settings that they come from.
///
/// The products are rounded to float32, as in the models' training, and stored as float64.
#[derive(Debug, Clone)]
pub struct NoiseSchedule {
    config: SchedulerConfig,
    betas: Vec<f64>,
    alphas_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// The schedule described by a scheduler configuration.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if a beta is not between 0 and 1, or the number of betas is wrong.
    pub fn from_config(config: &SchedulerConfig) -> Result<Self> {
        check(config)?;
        let mut betas = match &config.trained_betas {
            Some(betas) => betas.clone(),
            None => betas(config),
        };
        if config.rescale_betas_zero_snr {
            betas = rescaled_to_zero_snr(&betas);
        }
        let alphas_cumprod = cumulative_alphas(&betas).into_iter().map(f64::from).collect();
        let betas = betas.into_iter().map(f64::from).collect();
        Ok(Self { config: config.clone(), betas, alphas_cumprod })
    }

    /// The schedule of a base model, from its `scheduler/scheduler_config.json`.
    ///
    /// # Errors
    /// Those of [`SchedulerConfig::load`] and [`from_config`](Self::from_config).
    pub fn load(files: &ModelFiles) -> Result<Self> {
        Self::from_config(&SchedulerConfig::load(files)?)
    }

    /// The settings that the schedule was made from.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// The model's target.
    pub fn prediction(&self) -> Prediction {
        self.config.prediction_type
    }

    /// Number of training timesteps.
    pub fn len(&self) -> usize {
        self.betas.len()
    }

    /// Always false: a schedule has at least one timestep.
    pub fn is_empty(&self) -> bool {
        self.betas.is_empty()
    }

    /// Variance of the noise added at each timestep, `[len]`.
    pub fn betas(&self) -> &[f64] {
        &self.betas
    }

    /// Remaining share of signal power at each timestep, `[len]`, falling.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Ratio of signal to noise power, `a / (1 - a)`, at a timestep below [`len`](Self::len).
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the timestep is beyond the schedule.
    pub fn snr(&self, timestep: u32) -> Result<f64> {
        let signal = self.signal(timestep)?;
        Ok(signal / (1.0 - signal))
    }

    /// Noisy latents at `timesteps`, one per sample: `sqrt(a) x0 + sqrt(1 - a) noise`.
    ///
    /// `x0`, `noise` and the result: `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] unless there is one timestep of the schedule per sample.
    pub fn add_noise(&self, x0: &Tensor, noise: &Tensor, timesteps: &[u32]) -> Result<Tensor> {
        let (signal, spread) = self.coefficients(x0, timesteps)?;
        Ok((x0.broadcast_mul(&signal)? + noise.broadcast_mul(&spread)?)?)
    }

    /// The model's target: the noise or the velocity.
    ///
    /// Shapes as in [`add_noise`](Self::add_noise). No gradient is needed through the target.
    ///
    /// # Errors
    /// Those of [`add_noise`](Self::add_noise).
    pub fn target(&self, x0: &Tensor, noise: &Tensor, timesteps: &[u32]) -> Result<Tensor> {
        match self.prediction() {
            Prediction::Epsilon => Ok(noise.clone()),
            Prediction::Velocity => self.velocity(x0, noise, timesteps),
        }
    }

    /// `sqrt(a) noise - sqrt(1 - a) x0` (arXiv 2202.00512, appendix D).
    ///
    /// # Errors
    /// Those of [`add_noise`](Self::add_noise).
    pub fn velocity(&self, x0: &Tensor, noise: &Tensor, timesteps: &[u32]) -> Result<Tensor> {
        let (signal, spread) = self.coefficients(x0, timesteps)?;
        Ok((noise.broadcast_mul(&signal)? - x0.broadcast_mul(&spread)?)?)
    }

    /// Predicted clean latents: `x0`, solved from the model's output and the noisy latents.
    ///
    /// For a model that predicts noise, the share of signal is at least 2^-24.
    ///
    /// # Errors
    /// Those of [`add_noise`](Self::add_noise).
    pub fn predicted_x0(&self, model_output: &Tensor, noisy: &Tensor, timesteps: &[u32]) -> Result<Tensor> {
        let (signal, spread) = self.coefficients(noisy, timesteps)?;
        let x0 = match self.prediction() {
            Prediction::Epsilon => {
                let signal = signal.clamp(SMALLEST_SIGNAL.sqrt(), 1.0)?;
                (noisy - model_output.broadcast_mul(&spread)?)?.broadcast_div(&signal)?
            }
            Prediction::Velocity => (noisy.broadcast_mul(&signal)? - model_output.broadcast_mul(&spread)?)?,
        };
        Ok(x0)
    }

    /// Predicted noise: the model's output, or the noise solved from a velocity.
    ///
    /// # Errors
    /// Those of [`add_noise`](Self::add_noise).
    pub fn predicted_noise(&self, model_output: &Tensor, noisy: &Tensor, timesteps: &[u32]) -> Result<Tensor> {
        match self.prediction() {
            Prediction::Epsilon => Ok(model_output.clone()),
            Prediction::Velocity => {
                let (signal, spread) = self.coefficients(noisy, timesteps)?;
                Ok((model_output.broadcast_mul(&signal)? + noisy.broadcast_mul(&spread)?)?)
            }
        }
    }

    /// `sqrt(a)` and `sqrt(1 - a)` of each sample, `[batch, 1, …]` like `latents`.
    fn coefficients(&self, latents: &Tensor, timesteps: &[u32]) -> Result<(Tensor, Tensor)> {
        let batch = latents.dims().first().copied().unwrap_or(0);
        if batch != timesteps.len() {
            return Err(Error::InvalidInput {
                what: "timesteps",
                expected: format!("one for each of {batch} samples"),
                found: timesteps.len().to_string(),
            });
        }
        let signals = timesteps.iter().map(|t| self.signal(*t)).collect::<Result<Vec<f64>>>()?;
        let column = |values: Vec<f64>| -> Result<Tensor> {
            let mut shape = vec![1; latents.rank()];
            shape[0] = batch;
            Ok(Tensor::from_vec(values, shape, latents.device())?.to_dtype(float_of(latents))?)
        };
        let spread = signals.iter().map(|signal| (1.0 - signal).sqrt()).collect();
        Ok((column(signals.iter().map(|signal| signal.sqrt()).collect())?, column(spread)?))
    }

    fn signal(&self, timestep: u32) -> Result<f64> {
        self.alphas_cumprod.get(timestep as usize).copied().ok_or_else(|| Error::InvalidInput {
            what: "timestep",
            expected: format!("below {}", self.len()),
            found: timestep.to_string(),
        })
    }
}

fn float_of(latents: &Tensor) -> DType {
    if latents.dtype().is_float() { latents.dtype() } else { DType::F32 }
}

fn check(config: &SchedulerConfig) -> Result<()> {
    let steps = config.num_train_timesteps;
    if !(1..=MOST_TIMESTEPS).contains(&steps) {
        return Err(invalid("num_train_timesteps", steps, &format!("must be between 1 and {MOST_TIMESTEPS}")));
    }
    for (setting, beta) in [("beta_start", config.beta_start), ("beta_end", config.beta_end)] {
        if !(beta > 0.0 && beta < 1.0) {
            return Err(invalid(setting, beta, "must lie between 0 and 1"));
        }
    }
    let Some(betas) = &config.trained_betas else { return Ok(()) };
    if betas.len() != steps {
        return Err(invalid("trained_betas", betas.len(), &format!("must be num_train_timesteps = {steps} values")));
    }
    match betas.iter().find(|beta| !(**beta > 0.0 && **beta < 1.0)) {
        Some(beta) => Err(invalid("trained_betas", beta, "must lie between 0 and 1")),
        None => Ok(()),
    }
}

fn invalid(setting: &'static str, value: impl ToString, rule: &str) -> Error {
    Error::InvalidSetting { setting, value: value.to_string(), rule: rule.into() }
}

/// Betas in float32, in the order of operations that the models were trained with.
fn betas(config: &SchedulerConfig) -> Vec<f32> {
    let count = config.num_train_timesteps;
    match config.beta_schedule {
        BetaSchedule::Linear => evenly_spaced(config.beta_start as f32, config.beta_end as f32, count),
        BetaSchedule::ScaledLinear => {
            let (start, end) = (config.beta_start.sqrt() as f32, config.beta_end.sqrt() as f32);
            evenly_spaced(start, end, count).into_iter().map(|root| root * root).collect()
        }
        BetaSchedule::SquaredCosine => squared_cosine(count),
    }
}

/// `count` values from `start` to `end`, each computed from the nearer end.
fn evenly_spaced(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = if count > 1 { (end - start) / (count - 1) as f32 } else { 0.0 };
    let value = |index: usize| match index < count / 2 {
        true => start + step * index as f32,
        false => end - step * (count - 1 - index) as f32,
    };
    if count == 1 { vec![start] } else { (0..count).map(value).collect() }
}

/// `1 - a(t + 1) / a(t)` with `a(t) = cos²((t / count + 0.008) / 1.008 · π / 2)`, at most 0.999.
fn squared_cosine(count: usize) -> Vec<f32> {
    let signal = |step: usize| {
        let angle = (step as f64 / count as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2;
        angle.cos().powi(2)
    };
    (0..count).map(|step| (1.0 - signal(step + 1) / signal(step)).min(0.999) as f32).collect()
}

/// Products of `1 - beta`, accumulated in float64; each is rounded to float32.
fn cumulative_alphas(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0_f64;
    let mut next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(&mut next).collect()
}

/// Betas shifted and scaled so that `sqrt(a)` keeps its first value and ends at exactly zero
/// (arXiv 2305.08891, algorithm 1).
fn rescaled_to_zero_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = cumulative_alphas(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return Vec::new() };
    let stretch = first / (first - last);
    let signals: Vec<f32> = roots.iter().map(|root| ((root - last) * stretch).powi(2)).collect();
    let before = std::iter::once(&1.0_f32).chain(&signals);
    signals.iter().zip(before).map(|(signal, before)| 1.0 - signal / before).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use catelier_testkit::close::{assert_close, assert_numbers_close};
    use catelier_testkit::tolerance::Tolerance;
    use proptest::prelude::*;

    use super::*;

    fn schedule(prediction_type: Prediction) -> NoiseSchedule {
        let config = SchedulerConfig { prediction_type, ..SchedulerConfig::default() };
        NoiseSchedule::from_config(&config).unwrap()
    }

    fn latents(values: [f64; 4]) -> Tensor {
        Tensor::from_slice(&values, (2, 1, 1, 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn zero_snr_leaves_no_signal_at_the_last_timestep_and_the_first_untouched() {
        let plain = NoiseSchedule::from_config(&SchedulerConfig::default()).unwrap();
        let config = SchedulerConfig { rescale_betas_zero_snr: true, ..SchedulerConfig::default() };
        let zero = NoiseSchedule::from_config(&config).unwrap();
        assert_eq!(zero.snr(999).unwrap(), 0.0);
        assert_numbers_close(
            "first signal",
            &zero.alphas_cumprod()[..1],
            &plain.alphas_cumprod()[..1],
            Tolerance::Absolute(1e-6),
        );
    }

    #[test]
    fn the_squared_cosine_ends_with_the_largest_beta_allowed() {
        let config = SchedulerConfig { beta_schedule: BetaSchedule::SquaredCosine, ..SchedulerConfig::default() };
        let cosine = NoiseSchedule::from_config(&config).unwrap();
        assert_numbers_close("last beta", &cosine.betas()[999..], &[0.999], Tolerance::Absolute(1e-7));
        // a(500) / a(0) of the formula, in closed form
        let half = ((0.5_f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        let start = (0.008_f64 / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        assert_numbers_close(
            "middle signal",
            &cosine.alphas_cumprod()[499..500],
            &[half / start],
            Tolerance::Absolute(1e-5),
        );
    }

    #[test]
    fn a_timestep_beyond_the_schedule_is_named() {
        let error = schedule(Prediction::Epsilon).snr(1000).unwrap_err().to_string();
        assert!(error.contains("below 1000") && error.contains("found 1000"), "{error}");
    }

    #[test]
    fn settings_outside_their_range_are_refused() {
        let bad = [
            SchedulerConfig { beta_end: 1.5, ..SchedulerConfig::default() },
            SchedulerConfig { beta_start: f64::NAN, ..SchedulerConfig::default() },
            SchedulerConfig { num_train_timesteps: 0, ..SchedulerConfig::default() },
            SchedulerConfig { trained_betas: Some(vec![0.1; 3]), ..SchedulerConfig::default() },
        ];
        for config in bad {
            assert!(NoiseSchedule::from_config(&config).is_err(), "{config:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_perfect_prediction_gives_back_the_clean_latents_and_the_noise(
            x0 in prop::array::uniform4(-3.0..3.0_f64),
            noise in prop::array::uniform4(-3.0..3.0_f64),
            first in 0..1000_u32,
            second in 0..1000_u32,
            velocity: bool,
        ) {
            let prediction = if velocity { Prediction::Velocity } else { Prediction::Epsilon };
            let (schedule, timesteps) = (schedule(prediction), [first, second]);
            let (x0, noise) = (latents(x0), latents(noise));
            let noisy = schedule.add_noise(&x0, &noise, &timesteps).unwrap();
            let output = schedule.target(&x0, &noise, &timesteps).unwrap();
            let found = schedule.predicted_x0(&output, &noisy, &timesteps).unwrap();
            assert_close("x0", &found, &x0, Tolerance::Absolute(1e-9));
            let found = schedule.predicted_noise(&output, &noisy, &timesteps).unwrap();
            assert_close("noise", &found, &noise, Tolerance::Absolute(1e-9));
        }
    }
}
