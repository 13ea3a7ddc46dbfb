//! The forward process: how noise is mixed into latents, and what a model learns from it.
//!
//! ```text
//! z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) noise        a_t = alphas_cumprod[t]
//! epsilon  = noise                                  what SD 1.x, SD 2.x-base and SDXL predict
//! velocity = sqrt(a_t) noise - sqrt(1 - a_t) z_0    what SD 2.x at 768 pixels predicts
//! ```

mod config;
mod schedule;
mod timesteps;

pub use config::{BetaSchedule, FinalSigma, Prediction, SchedulerConfig, Spacing};
pub use schedule::NoiseSchedule;
pub(crate) use schedule::SMALLEST_SIGNAL;
pub use timesteps::TimestepSampling;
