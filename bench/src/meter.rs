//! Repeats work and measures time, operations and memory.

use std::time::Instant;

use candle_core::Device;
use catelier_numerics::work;
use catelier_pipelines::training::TrainError;

use crate::process::{self, cpu_seconds};
use crate::{Rate, Workload};

/// The times and operations of at least one iteration, in order, and the memory of all.
#[derive(Debug, Clone)]
pub struct Measured {
    iterations: Vec<Iteration>,
    /// Memory held before the first iteration, in bytes.
    pub resident_bytes: Option<u64>,
    /// Peak memory during the iterations, in bytes.
    pub peak_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Iteration {
    wall_seconds: f64,
    /// User and system time of all threads.
    cpu_seconds: Option<f64>,
    flops: u64,
}

/// Runs `work`, which is on `device`, `warmup` times without measuring, then `repeat` times (at least once).
///
/// # Errors
/// Those of `work`, and an error of the device while the meter waits for it.
pub fn measure(work: &mut dyn Workload, device: &Device, warmup: usize, repeat: usize) -> Result<Measured, TrainError> {
    let resident_bytes = process::resident_bytes();
    for _ in 0..warmup {
        finish(work, device)?;
    }
    let peak_is_known = process::forget_peak().is_some();
    let iterations = (0..repeat.max(1)).map(|_| iterate(work, device)).collect::<Result<Vec<_>, TrainError>>()?;
    let peak_bytes = process::peak_bytes().filter(|_| peak_is_known);
    Ok(Measured { iterations, resident_bytes, peak_bytes })
}

/// Runs `work` once and waits for the device, which may still compute after the last call returns.
fn finish(work: &mut dyn Workload, device: &Device) -> Result<(), TrainError> {
    work.run()?;
    Ok(device.synchronize()?)
}

fn iterate(work: &mut dyn Workload, device: &Device) -> Result<Iteration, TrainError> {
    let (flops, cpu, wall) = (work::flops(), cpu_seconds(), Instant::now());
    finish(work, device)?;
    Ok(Iteration {
        wall_seconds: wall.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds().zip(cpu).map(|(after, before)| after - before),
        flops: work::flops() - flops,
    })
}

impl Measured {
    /// Median wall-clock time of an iteration.
    #[must_use]
    pub fn median_wall_seconds(&self) -> f64 {
        median(self.iterations.iter().map(|iteration| iteration.wall_seconds).collect())
    }

    /// Shortest wall-clock time of an iteration.
    #[must_use]
    pub fn best_wall_seconds(&self) -> f64 {
        self.iterations.iter().map(|iteration| iteration.wall_seconds).fold(f64::INFINITY, f64::min)
    }

    /// Median CPU time of an iteration over all threads; `None` if the system does not report it.
    #[must_use]
    pub fn median_cpu_seconds(&self) -> Option<f64> {
        self.all_cpu_seconds().map(median)
    }

    /// Shortest CPU time of an iteration over all threads; `None` if the system does not report it.
    #[must_use]
    pub fn best_cpu_seconds(&self) -> Option<f64> {
        self.all_cpu_seconds().map(|seconds| seconds.into_iter().fold(f64::INFINITY, f64::min))
    }

    /// Counted operations of one iteration, in units of 10⁹; all iterations have the same count.
    #[must_use]
    pub fn gflop(&self) -> f64 {
        self.iterations.last().map_or(0.0, |iteration| iteration.flops as f64 / 1e9)
    }

    /// Rate of operations by the median times.
    #[must_use]
    pub fn median_rate(&self) -> Rate {
        self.rate(self.median_wall_seconds(), self.median_cpu_seconds())
    }

    /// Rate of operations by the shortest times.
    #[must_use]
    pub fn best_rate(&self) -> Rate {
        self.rate(self.best_wall_seconds(), self.best_cpu_seconds())
    }

    fn rate(&self, wall: f64, cpu: Option<f64>) -> Rate {
        let gflop = self.gflop();
        Rate { gflop_per_second: gflop / wall, gflop_per_cpu_second: cpu.map(|cpu| gflop / cpu) }
    }

    fn all_cpu_seconds(&self) -> Option<Vec<f64>> {
        self.iterations.iter().map(|iteration| iteration.cpu_seconds).collect()
    }
}

/// The median; for an even count the mean of the two middle values; 0 without values.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count => (values[(count - 1) / 2] + values[count / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_two() {
        assert_eq!(median(vec![3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 9.0, 2.0]), 3.0);
    }
}
