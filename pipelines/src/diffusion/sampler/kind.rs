//! The samplers: names, labels and settings.

use std::fmt;
use std::str::FromStr;

use crate::diffusion::{NoiseSchedule, SchedulerConfig, Spacing};
use crate::error::Error;

/// A sampler by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SamplerKind {
    /// Ancestral sampling of the training process (Ho et al. 2020, arXiv 2006.11239).
    Ddpm,
    /// The deterministic sampler of the same process (Song et al. 2020, arXiv 2010.02502).
    Ddim,
    /// Linear multistep of order four (Liu et al. 2022, arXiv 2202.09778), without its slow start.
    Pndm,
    /// First-order steps in sigma (Karras et al. 2022, arXiv 2206.00364).
    Euler,
    /// Euler with fresh noise at every step.
    EulerAncestral,
    /// Second-order steps in sigma, two model calls each (arXiv 2206.00364, algorithm 1).
    Heun,
    /// Second-order multistep in log-SNR (Lu et al. 2022, arXiv 2211.01095).
    DpmPlusPlus2M,
    /// DPM++ 2M for the stochastic differential equation.
    DpmPlusPlus2MSde,
    /// Predictor and corrector of order two (Zhao et al. 2023, arXiv 2302.04867).
    UniPc,
    /// Few steps of a consistency-distilled model (Luo et al. 2023, arXiv 2310.04378).
    Lcm,
}

impl SamplerKind {
    /// Every sampler, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Ddim,
        Self::Ddpm,
        Self::Pndm,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::DpmPlusPlus2M,
        Self::DpmPlusPlus2MSde,
        Self::UniPc,
        Self::Lcm,
    ];

    /// The name on the command line and in run files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::Pndm => "pndm",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
            Self::Heun => "heun",
            Self::DpmPlusPlus2M => "dpm++2m",
            Self::DpmPlusPlus2MSde => "dpm++2m-sde",
            Self::UniPc => "unipc",
            Self::Lcm => "lcm",
        }
    }

    /// The name that web interfaces write into an image's `parameters`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ddpm => "DDPM",
            Self::Ddim => "DDIM",
            Self::Pndm => "PLMS",
            Self::Euler => "Euler",
            Self::EulerAncestral => "Euler a",
            Self::Heun => "Heun",
            Self::DpmPlusPlus2M => "DPM++ 2M",
            Self::DpmPlusPlus2MSde => "DPM++ 2M SDE",
            Self::UniPc => "UniPC",
            Self::Lcm => "LCM",
        }
    }

    /// The diffusers class of the same sampler.
    pub fn diffusers_class(self) -> &'static str {
        match self {
            Self::Ddpm => "DDPMScheduler",
            Self::Ddim => "DDIMScheduler",
            Self::Pndm => "PNDMScheduler",
            Self::Euler => "EulerDiscreteScheduler",
            Self::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Self::Heun => "HeunDiscreteScheduler",
            Self::DpmPlusPlus2M | Self::DpmPlusPlus2MSde => "DPMSolverMultistepScheduler",
            Self::UniPc => "UniPCMultistepScheduler",
            Self::Lcm => "LCMScheduler",
        }
    }

    /// The sampler that a model's `scheduler_config.json` recommends; `None` if this crate lacks it.
    pub fn recommended(config: &SchedulerConfig) -> Option<Self> {
        let class = config.class_name.as_deref()?;
        let stochastic = config.algorithm_type.as_deref() == Some("sde-dpmsolver++");
        match Self::ALL.into_iter().find(|kind| kind.diffusers_class() == class)? {
            Self::DpmPlusPlus2M if stochastic => Some(Self::DpmPlusPlus2MSde),
            kind => Some(kind),
        }
    }

    /// diffusers' default spacing of this sampler, for a model whose configuration has none.
    fn default_spacing(self) -> Spacing {
        match self {
            Self::Ddpm | Self::Ddim | Self::Pndm | Self::Lcm => Spacing::Leading,
            _ => Spacing::Linspace,
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    /// Parses a name, a label or a diffusers class, in any case: `euler-a`, `Euler a`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let plain = |text: &str| text.to_lowercase().replace([' ', '-', '_'], "");
        let wanted = plain(text);
        let names = |kind: &Self| [kind.name(), kind.label(), kind.diffusers_class()].map(plain);
        let found = Self::ALL.into_iter().find(|kind| names(kind).contains(&wanted));
        found.ok_or_else(|| Error::InvalidSetting {
            setting: "sampler",
            value: format!("`{text}`"),
            rule: format!("must be one of {}", Self::ALL.map(|kind| format!("`{kind}`")).join(", ")),
        })
    }
}

/// The settings of a sampler, besides the model's noise schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerSettings {
    /// Which sampler.
    pub kind: SamplerKind,
    /// Number of steps, from 1 to one below the schedule's length.
    pub steps: usize,
    /// The timesteps to visit; `None` takes the model's configuration, then the sampler's default.
    pub spacing: Option<Spacing>,
    /// Karras sigmas, for Euler, Heun, DPM++ and UniPC; `None` takes the model's configuration.
    pub karras: Option<bool>,
    /// DDIM only: 0 is deterministic, 1 draws the noise of DDPM.
    pub eta: f64,
}

impl SamplerSettings {
    /// A sampler with the settings of the model's configuration.
    pub fn new(kind: SamplerKind, steps: usize) -> Self {
        Self { kind, steps, spacing: None, karras: None, eta: 0.0 }
    }

    pub(super) fn spacing_for(&self, schedule: &NoiseSchedule) -> Spacing {
        let configured = schedule.config().timestep_spacing;
        self.spacing.or(configured).unwrap_or_else(|| self.kind.default_spacing())
    }

    pub(super) fn karras_for(&self, schedule: &NoiseSchedule) -> bool {
        self.karras.unwrap_or(schedule.config().use_karras_sigmas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_label_and_class_reads_back() {
        for kind in SamplerKind::ALL {
            assert_eq!(kind.name().parse::<SamplerKind>().unwrap(), kind);
            assert_eq!(kind.label().parse::<SamplerKind>().unwrap(), kind);
        }
        assert_eq!("EulerDiscreteScheduler".parse::<SamplerKind>().unwrap(), SamplerKind::Euler);
        assert_eq!("Euler A".parse::<SamplerKind>().unwrap(), SamplerKind::EulerAncestral);
    }

    #[test]
    fn an_unknown_sampler_is_answered_with_the_list() {
        let error = "k_lms".parse::<SamplerKind>().unwrap_err().to_string();
        assert!(error.contains("`k_lms`") && error.contains("`unipc`"), "{error}");
    }
}
