//! Samplers: from noise to latents, one model call at a time.
//!
//! A generation is this loop, with any sampler:
//!
//! ```text
//! latents = unit normal noise * sampler.initial_noise_scale()
//! for (call, timestep) in sampler.timesteps():
//!     input        = sampler.scale_input(latents, call)
//!     model_output = unet(input, timestep)
//!     latents      = sampler.step(model_output, call, latents, noise of this call if it draws any)
//! ```
//!
//! and at its end `latents` are clean latents. A sampler draws no randomness: if [`Sampler::draws_noise`] returns true,
//! the caller passes unit normal noise. Names, defaults and arithmetic follow diffusers' schedulers, and tests compare
//! each with them. Two things differ: DDIM and PNDM step to the next visited timestep, even if rounding puts it off a
//! whole stride; and PNDM combines predictions of the noise, also for a model that predicts velocities.

mod combine;
mod ddim;
mod ddpm;
mod dpm_solver;
mod euler;
mod heun;
mod kind;
mod lcm;
mod pndm;
mod sigmas;
mod timesteps;
mod unipc;

use candle_core::Tensor;

pub use kind::{SamplerKind, SamplerSettings};

use crate::diffusion::NoiseSchedule;
use crate::error::{Error, Result};

/// The steps of one generation. It keeps state between calls, so each generation needs a new one.
pub trait Sampler: std::fmt::Debug + Send {
    /// The timestep of every model call, in order. Euler's may be fractions.
    fn timesteps(&self) -> &[f64];

    /// The step, counted from 0, that `call` belongs to: some samplers call the model twice in a step.
    fn step_of(&self, call: usize) -> usize {
        call
    }

    /// Factor of the unit normal noise that a generation starts from.
    fn initial_noise_scale(&self) -> f64 {
        1.0
    }

    /// The noise level before every call and after the last; `None` for samplers without sigmas.
    fn sigmas(&self) -> Option<&[f64]> {
        None
    }

    /// The model's input at `call`: `[batch, channels, height, width]`, like `latents`.
    ///
    /// # Errors
    /// An error if a tensor operation fails.
    fn scale_input(&self, latents: &Tensor, _call: usize) -> Result<Tensor> {
        Ok(latents.clone())
    }

    /// Whether [`step`](Self::step) needs noise at `call`.
    fn draws_noise(&self, _call: usize) -> bool {
        false
    }

    /// The latents after `call`, from the model's output.
    ///
    /// `model_output`, `latents`, `noise` and the result: `[batch, channels, height, width]`.
    /// The caller makes each call once, in order.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the call needs noise and `noise` is `None`.
    fn step(&mut self, model_output: &Tensor, call: usize, latents: &Tensor, noise: Option<&Tensor>) -> Result<Tensor>;
}

/// Builds the sampler for one generation.
///
/// # Errors
/// [`Error::InvalidSetting`] if the schedule has fewer steps than `settings` ask for.
pub fn prepare(schedule: &NoiseSchedule, settings: &SamplerSettings) -> Result<Box<dyn Sampler>> {
    Ok(match settings.kind {
        SamplerKind::Ddpm => Box::new(ddpm::Ddpm::new(schedule, settings)?),
        SamplerKind::Ddim => Box::new(ddim::Ddim::new(schedule, settings)?),
        SamplerKind::Pndm => Box::new(pndm::Pndm::new(schedule, settings)?),
        SamplerKind::Euler => Box::new(euler::Euler::new(schedule, settings)?),
        SamplerKind::EulerAncestral => Box::new(euler::Euler::ancestral(schedule, settings)?),
        SamplerKind::Heun => Box::new(heun::Heun::new(schedule, settings)?),
        SamplerKind::DpmPlusPlus2M => Box::new(dpm_solver::DpmSolver::new(schedule, settings)?),
        SamplerKind::DpmPlusPlus2MSde => Box::new(dpm_solver::DpmSolver::stochastic(schedule, settings)?),
        SamplerKind::UniPc => Box::new(unipc::UniPc::new(schedule, settings)?),
        SamplerKind::Lcm => Box::new(lcm::Lcm::new(schedule, settings)?),
    })
}

/// The noise of a step that needs it.
fn needed(noise: Option<&Tensor>) -> Result<&Tensor> {
    noise.ok_or_else(|| Error::InvalidInput {
        what: "noise",
        expected: "unit normal noise, because this sampler draws some at every step".into(),
        found: "none".into(),
    })
}

#[cfg(test)]
mod tests;
