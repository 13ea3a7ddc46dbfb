//! Samplers: from noise to latents, one model call at a time.
//!
//! Whatever the sampler, a generation is this loop:
//!
//! ```text
//! latents = unit normal noise * sampler.initial_noise_scale()
//! for (call, timestep) in sampler.timesteps():
//!     input        = sampler.scale_input(latents, call)
//!     model_output = unet(input, timestep)
//!     latents      = sampler.step(model_output, call, latents, noise of this call if it draws any)
//! ```
//!
//! and at its end `latents` are clean latents. A sampler draws nothing by itself: where
//! [`Sampler::draws_noise`] says so, the caller hands in unit normal noise. Names, defaults and
//! arithmetic follow diffusers' schedulers, against which each is tested, but for two things: DDIM
//! and PNDM step to the timestep that is visited next, also where rounding puts that beside a whole
//! stride; and PNDM combines predictions of the noise, also for a model that predicts velocities.

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

/// The steps of one generation; keeps what earlier steps left behind, so use it once.
pub trait Sampler: std::fmt::Debug + Send {
    /// The timestep of every model call, in order. Euler's need not be whole numbers.
    fn timesteps(&self) -> &[f64];

    /// Factor of the unit normal noise that a generation starts from.
    fn initial_noise_scale(&self) -> f64 {
        1.0
    }

    /// The noise level before every call and after the last, for samplers that work in sigmas.
    fn sigmas(&self) -> Option<&[f64]> {
        None
    }

    /// What the model is given at `call`: `[batch, channels, height, width]` like `latents`.
    ///
    /// # Errors
    /// When the tensor operation fails.
    fn scale_input(&self, latents: &Tensor, _call: usize) -> Result<Tensor> {
        Ok(latents.clone())
    }

    /// Whether [`step`](Self::step) needs noise at `call`.
    fn draws_noise(&self, _call: usize) -> bool {
        false
    }

    /// Latents after `call`, from the model's output for them.
    ///
    /// `model_output`, `latents`, `noise` and the result: `[batch, channels, height, width]`.
    /// Calls are made in order, each once.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when noise is needed and not there.
    fn step(&mut self, model_output: &Tensor, call: usize, latents: &Tensor, noise: Option<&Tensor>) -> Result<Tensor>;
}

/// A sampler ready to run.
///
/// # Errors
/// [`Error::InvalidSetting`] when the schedule does not have that many steps.
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

/// The noise of a step that needs some.
fn needed(noise: Option<&Tensor>) -> Result<&Tensor> {
    noise.ok_or_else(|| Error::InvalidInput {
        what: "noise",
        expected: "unit normal noise, because this sampler draws some at every step".into(),
        found: "none".into(),
    })
}

#[cfg(test)]
mod tests;
