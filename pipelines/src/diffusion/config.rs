//! `scheduler/scheduler_config.json`, as diffusers writes it for any of its schedulers.

use catelier_adapters::Prediction;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::models::config::check::{Check, Rule, Table};
use crate::models::files::ModelFiles;

/// The curve of beta over the timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BetaSchedule {
    /// Evenly spaced (Ho et al. 2020, arXiv 2006.11239).
    #[serde(rename = "linear")]
    Linear,
    /// Evenly spaced in the square root of beta, as in every Stable Diffusion.
    #[serde(rename = "scaled_linear")]
    ScaledLinear,
    /// `a_t` follows a squared cosine (Nichol and Dhariwal 2021, arXiv 2102.09672).
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// The training timesteps that a sampler visits (Lin et al. 2023, arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// Multiples of a whole step from 0, shifted by `steps_offset`; never the last timestep.
    Leading,
    /// Evenly spaced from the first to the last, both included.
    Linspace,
    /// Counted down from the last timestep, which zero terminal SNR needs.
    Trailing,
}

/// The last sigma of the samplers in sigma.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum FinalSigma {
    /// Zero.
    #[default]
    #[serde(rename = "zero")]
    Zero,
    /// Sigma of the first training timestep.
    #[serde(rename = "sigma_min")]
    Smallest,
}

/// The settings of a scheduler configuration that this crate reads; other keys belong to other classes.
///
/// A missing key takes diffusers' default. If the default differs between schedulers, the field is optional and each
/// sampler has its own default.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SchedulerConfig {
    /// The diffusers class that the folder recommends for sampling.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Number of training timesteps, 1000 for Stable Diffusion.
    pub num_train_timesteps: usize,
    /// First beta, in (0, 1).
    pub beta_start: f64,
    /// Last beta, in (0, 1).
    pub beta_end: f64,
    /// The curve from the first beta to the last.
    pub beta_schedule: BetaSchedule,
    /// A list of betas, in place of the curve.
    pub trained_betas: Option<Vec<f32>>,
    /// The model's target.
    pub prediction_type: Prediction,
    /// Whether betas are rescaled so that the last timestep is pure noise (arXiv 2305.08891).
    pub rescale_betas_zero_snr: bool,
    /// The timesteps that a sampler visits.
    pub timestep_spacing: Option<Spacing>,
    /// Added to every timestep of `leading` spacing.
    pub steps_offset: usize,
    /// Whether the step below timestep 0 goes to `a = 1`, and not to `a_0`.
    pub set_alpha_to_one: Option<bool>,
    /// Whether sigmas follow Karras et al. 2022 (arXiv 2206.00364, equation 5).
    pub use_karras_sigmas: bool,
    /// The last sigma.
    pub final_sigmas_type: FinalSigma,
    /// The DPM-Solver variant: `dpmsolver++` or `sde-dpmsolver++`.
    pub algorithm_type: Option<String>,
    /// LCM: number of steps of the teacher's schedule.
    pub original_inference_steps: usize,
    /// LCM: factor of the timestep in the boundary condition.
    pub timestep_scaling: f64,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: None,
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: Prediction::Epsilon,
            rescale_betas_zero_snr: false,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: None,
            use_karras_sigmas: false,
            final_sigmas_type: FinalSigma::Zero,
            algorithm_type: None,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
        }
    }
}

/// The longest schedule.
pub(super) const MOST_TIMESTEPS: usize = 100_000;

/// The keys of diffusers' schedulers for Stable Diffusion. A folder may recommend any of them, and any sampler may be
/// chosen for it, so a key of one class that changes results is refused for all.
pub(crate) const SCHEDULER: &Table = &[
    ("_class_name", Rule::Text),
    ("_diffusers_version", Rule::Irrelevant),
    ("algorithm_type", Rule::OneOf(&["\"dpmsolver++\"", "\"sde-dpmsolver++\""])),
    ("beta_end", Rule::Real(f64::MIN_POSITIVE, 1.0 - f64::EPSILON)),
    ("beta_schedule", Rule::OneOf(&["\"linear\"", "\"scaled_linear\"", "\"squaredcos_cap_v2\""])),
    ("beta_start", Rule::Real(f64::MIN_POSITIVE, 1.0 - f64::EPSILON)),
    ("clip_sample", Rule::OneOf(&["false"])),
    // Without `clip_sample` and `thresholding`, these three do nothing.
    ("clip_sample_range", Rule::Irrelevant),
    ("dynamic_thresholding_ratio", Rule::Irrelevant),
    ("sample_max_value", Rule::Irrelevant),
    ("disable_corrector", Rule::OneOf(&["[]"])),
    ("euler_at_final", Rule::OneOf(&["false"])),
    ("final_sigmas_type", Rule::OneOf(&["\"zero\"", "\"sigma_min\""])),
    // Without `use_flow_sigmas`, these do nothing.
    ("flow_shift", Rule::Irrelevant),
    ("time_shift_type", Rule::Irrelevant),
    ("interpolation_type", Rule::OneOf(&["\"linear\""])),
    ("lower_order_final", Rule::OneOf(&["true"])),
    ("num_train_timesteps", Rule::Whole(1, MOST_TIMESTEPS as u64)),
    ("original_inference_steps", Rule::Whole(1, MOST_TIMESTEPS as u64)),
    ("predict_x0", Rule::OneOf(&["true"])),
    ("prediction_type", Rule::OneOf(&["\"epsilon\"", "\"v_prediction\""])),
    ("rescale_betas_zero_snr", Rule::Flag),
    ("set_alpha_to_one", Rule::Flag),
    ("sigma_max", Rule::OneOf(&["null"])),
    ("sigma_min", Rule::OneOf(&["null"])),
    ("skip_prk_steps", Rule::OneOf(&["true"])),
    ("solver_order", Rule::OneOf(&["2"])),
    ("solver_p", Rule::OneOf(&["null"])),
    ("solver_type", Rule::OneOf(&["\"midpoint\"", "\"bh2\""])),
    ("steps_offset", Rule::Whole(0, MOST_TIMESTEPS as u64)),
    ("thresholding", Rule::OneOf(&["false"])),
    ("timestep_scaling", Rule::Real(1e-4, 1e4)),
    ("timestep_spacing", Rule::OneOf(&["\"leading\"", "\"linspace\"", "\"trailing\""])),
    ("timestep_type", Rule::OneOf(&["\"discrete\""])),
    ("trained_betas", Rule::OrNull(&Rule::List(MOST_TIMESTEPS, &Rule::Real(f64::MIN_POSITIVE, 1.0 - f64::EPSILON)))),
    ("use_beta_sigmas", Rule::OneOf(&["false", "null"])),
    ("use_dynamic_shifting", Rule::OneOf(&["false", "null"])),
    ("use_exponential_sigmas", Rule::OneOf(&["false", "null"])),
    ("use_flow_sigmas", Rule::OneOf(&["false", "null"])),
    ("use_karras_sigmas", Rule::Flag),
    ("use_lu_lambdas", Rule::OneOf(&["false", "null"])),
    ("variance_type", Rule::OneOf(&["null", "\"fixed_small\""])),
];

impl SchedulerConfig {
    /// Reads `scheduler/scheduler_config.json`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig), or
    /// [`Error::UnsupportedSettings`](crate::Error::UnsupportedSettings) with every key that is not supported.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let mut check = Check::new("scheduler/scheduler_config.json", files, SCHEDULER)?;
        let config = check.parse()?;
        check.finish()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_missing_take_the_defaults_of_diffusers() {
        let config: SchedulerConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(config, SchedulerConfig::default());
    }

    #[test]
    fn a_prediction_of_the_clean_sample_is_refused_by_name() {
        let error =
            serde_json::from_str::<SchedulerConfig>(r#"{"prediction_type": "sample"}"#).unwrap_err().to_string();
        assert!(error.contains("`sample`") && error.contains("`v_prediction`"), "{error}");
    }
}
