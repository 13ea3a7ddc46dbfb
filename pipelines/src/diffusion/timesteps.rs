//! Draws the timestep of each training sample.

use std::ops::Range;

use catelier_numerics::noise::{Noise, Stream};
use serde::{Deserialize, Serialize};

use super::NoiseSchedule;

/// How timesteps are drawn; with both, each sample's timestep is uniform over the whole schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepSampling {
    /// Independently for every sample.
    #[default]
    Uniform,
    /// The schedule is split into one equal part per sample of the batch, and each sample gets a timestep from its own
    /// part. No batch is all noise or all signal, so the loss varies less from step to step.
    Stratified,
}

impl TimestepSampling {
    /// One timestep for each of `samples`, a function of (seed, stream, step, sample).
    pub fn draw(
        self,
        schedule: &NoiseSchedule,
        noise: &Noise,
        stream: Stream,
        step: u64,
        samples: Range<u64>,
    ) -> Vec<u32> {
        let count = (samples.end - samples.start) as usize;
        let parts = match self {
            Self::Uniform => vec![(0.0, 1.0); count],
            Self::Stratified => rotated_parts(noise.uniforms(stream, step, u64::MAX, 1)[0], count),
        };
        let timestep = |(sample, (start, width)): (u64, (f64, f64))| {
            let uniform = noise.uniforms(stream, step, sample, 1)[0];
            let place = (start + width * uniform) * schedule.len() as f64;
            (place as usize).min(schedule.len() - 1) as u32
        };
        samples.zip(parts).map(timestep).collect()
    }
}

/// Start and width of `count` equal parts of [0, 1). `turn` chooses the first part, so that no position in the batch
/// always has the same part.
fn rotated_parts(turn: f64, count: usize) -> Vec<(f64, f64)> {
    let first = (turn * count as f64) as usize;
    let width = 1.0 / count as f64;
    (0..count).map(|place| (((place + first) % count) as f64 * width, width)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::SchedulerConfig;

    const STREAM: Stream = Stream("timestep test");

    fn draw(sampling: TimestepSampling, step: u64, samples: Range<u64>) -> Vec<u32> {
        let schedule = NoiseSchedule::from_config(&SchedulerConfig::default()).unwrap();
        sampling.draw(&schedule, &Noise::new(7), STREAM, step, samples)
    }

    #[test]
    fn a_samples_timestep_does_not_depend_on_its_batch() {
        let together = draw(TimestepSampling::Uniform, 3, 0..4);
        let alone = draw(TimestepSampling::Uniform, 3, 2..3);
        assert_eq!(together[2..3], alone);
    }

    #[test]
    fn uniform_timesteps_cover_the_schedule_evenly() {
        let drawn = draw(TimestepSampling::Uniform, 0, 0..4000);
        for quarter in 0..4_u32 {
            let range = quarter * 250..(quarter + 1) * 250;
            let share = drawn.iter().filter(|t| range.contains(t)).count() as f64 / 4000.0;
            // four standard deviations of a binomial share
            assert!((share - 0.25).abs() < 4.0 * (0.25 * 0.75 / 4000.0_f64).sqrt(), "{quarter}: {share}");
        }
    }

    #[test]
    fn a_stratified_batch_has_one_timestep_in_every_part() {
        for step in 0..20 {
            let mut parts: Vec<u32> = draw(TimestepSampling::Stratified, step, 0..8).iter().map(|t| t / 125).collect();
            parts.sort_unstable();
            assert_eq!(parts, (0..8).collect::<Vec<u32>>());
        }
    }

    #[test]
    fn the_first_place_of_a_stratified_batch_visits_every_part() {
        let parts: std::collections::BTreeSet<u32> =
            (0..100).map(|step| draw(TimestepSampling::Stratified, step, 0..4)[0] / 250).collect();
        assert_eq!(parts.len(), 4);
    }
}
