//! The forward process: it adds noise to latents, and defines the target that a model learns to predict.
//!
//! ```text
//! z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) noise        a_t = alphas_cumprod[t]
//! epsilon  = noise                                  the target of SD 1.x, SD 2.x-base and SDXL
//! velocity = sqrt(a_t) noise - sqrt(1 - a_t) z_0    the target of SD 2.x at 768 pixels
//! ```

mod config;
pub mod loss;
pub mod sampler;
mod schedule;
mod timesteps;

pub use catelier_adapters::Prediction;
#[cfg(test)]
pub(crate) use config::SCHEDULER;
pub use config::{BetaSchedule, FinalSigma, SchedulerConfig, Spacing};
pub use schedule::NoiseSchedule;
pub(crate) use schedule::SMALLEST_SIGNAL;
pub use timesteps::TimestepSampling;
