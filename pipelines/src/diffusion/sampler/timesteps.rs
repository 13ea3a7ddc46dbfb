//! The training timesteps that a sampler visits, from the noisiest down.

use crate::diffusion::{NoiseSchedule, Spacing};
use crate::error::{Error, Result};

/// Whether linspace timesteps are rounded to whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounding {
    Whole,
    Fractional,
}

/// `steps` timesteps with this `spacing`, in falling order.
pub(super) fn spaced(schedule: &NoiseSchedule, spacing: Spacing, steps: usize, rounding: Rounding) -> Result<Vec<f64>> {
    check(schedule, steps)?;
    let length = schedule.len();
    let timesteps: Vec<f64> = match spacing {
        Spacing::Leading => leading(length / steps, steps, schedule.config().steps_offset),
        Spacing::Trailing => trailing(length, steps),
        Spacing::Linspace => {
            let rounded = |value: f64| match rounding {
                Rounding::Whole => value.round_ties_even(),
                Rounding::Fractional => f64::from(value as f32),
            };
            linspace(length, steps).into_iter().map(rounded).collect()
        }
    };
    within(schedule, timesteps)
}

/// Timesteps of the solvers in log-SNR: `leading` and `linspace` are spaced for one step more, without the last
/// timestep.
pub(super) fn spaced_for_solver(schedule: &NoiseSchedule, spacing: Spacing, steps: usize) -> Result<Vec<f64>> {
    check(schedule, steps)?;
    let length = schedule.len();
    let mut timesteps: Vec<f64> = match spacing {
        Spacing::Leading => leading(length / (steps + 1), steps + 1, schedule.config().steps_offset),
        Spacing::Trailing => trailing(length, steps),
        Spacing::Linspace => linspace(length, steps + 1).into_iter().map(f64::round_ties_even).collect(),
    };
    timesteps.truncate(steps);
    within(schedule, timesteps)
}

fn leading(stride: usize, steps: usize, offset: usize) -> Vec<f64> {
    (0..steps).rev().map(|index| (index * stride + offset) as f64).collect()
}

fn trailing(length: usize, steps: usize) -> Vec<f64> {
    let stride = length as f64 / steps as f64;
    (0..steps).map(|index| (length as f64 - index as f64 * stride).round_ties_even() - 1.0).collect()
}

fn linspace(length: usize, steps: usize) -> Vec<f64> {
    // a single step starts at timestep 0
    let stride = if steps > 1 { (length - 1) as f64 / (steps - 1) as f64 } else { 0.0 };
    (0..steps).rev().map(|index| index as f64 * stride).collect()
}

fn check(schedule: &NoiseSchedule, steps: usize) -> Result<()> {
    let most = schedule.len() - 1;
    if (1..=most).contains(&steps) {
        return Ok(());
    }
    Err(Error::InvalidSetting {
        setting: "steps",
        value: steps.to_string(),
        rule: format!("must be between 1 and {most}"),
    })
}

fn within(schedule: &NoiseSchedule, timesteps: Vec<f64>) -> Result<Vec<f64>> {
    let last = (schedule.len() - 1) as f64;
    match timesteps.iter().find(|timestep| !(0.0..=last).contains(*timestep)) {
        None => Ok(timesteps),
        Some(timestep) => Err(Error::InvalidSetting {
            setting: "steps_offset",
            value: schedule.config().steps_offset.to_string(),
            rule: format!("leads to timestep {timestep}, beyond the last one, {last}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::SchedulerConfig;

    fn schedule() -> NoiseSchedule {
        let config = SchedulerConfig { steps_offset: 1, ..SchedulerConfig::default() };
        NoiseSchedule::from_config(&config).unwrap()
    }

    fn four(spacing: Spacing) -> Vec<f64> {
        spaced(&schedule(), spacing, 4, Rounding::Whole).unwrap()
    }

    #[test]
    fn the_three_spacings_are_those_of_the_paper() {
        assert_eq!(four(Spacing::Leading), [751.0, 501.0, 251.0, 1.0]);
        assert_eq!(four(Spacing::Linspace), [999.0, 666.0, 333.0, 0.0]);
        assert_eq!(four(Spacing::Trailing), [999.0, 749.0, 499.0, 249.0]);
    }

    #[test]
    fn trailing_starts_at_pure_noise_for_any_number_of_steps() {
        for steps in 1..200 {
            let timesteps = spaced(&schedule(), Spacing::Trailing, steps, Rounding::Whole).unwrap();
            assert_eq!((timesteps[0], timesteps.len()), (999.0, steps));
        }
    }

    #[test]
    fn no_steps_and_too_many_are_refused() {
        for steps in [0, 1000] {
            assert!(spaced(&schedule(), Spacing::Leading, steps, Rounding::Whole).is_err());
            assert!(spaced_for_solver(&schedule(), Spacing::Linspace, steps).is_err());
        }
    }
}
