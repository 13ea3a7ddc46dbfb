//! Runs a piece of work several times and notes what each time took.

use std::time::Instant;

use candle_core::Device;
use catelier_numerics::work;
use catelier_pipelines::workload::Workload;

use catelier_workflows::{Context, Result};

use crate::memory;

/// What some iterations took, in the order they were made; at least one.
pub(crate) struct Measured {
    iterations: Vec<Iteration>,
    /// Memory held before the first iteration, in bytes.
    pub(crate) resident_bytes: Option<u64>,
    /// Most memory held during the iterations, in bytes.
    pub(crate) peak_bytes: Option<u64>,
}

struct Iteration {
    wall_seconds: f64,
    /// User and system time of all threads.
    cpu_seconds: Option<f64>,
    flops: u64,
}

/// Runs `work`, which is on `device`, `warmup` times unseen, then `repeat` times (at least once).
pub(crate) fn measure(work: &mut dyn Workload, device: &Device, warmup: usize, repeat: usize) -> Result<Measured> {
    let resident_bytes = memory::resident_bytes();
    for _ in 0..warmup {
        finish(work, device)?;
    }
    let peak_is_known = memory::forget_peak().is_some();
    let iterations = (0..repeat.max(1)).map(|_| iterate(work, device)).collect::<Result<Vec<_>>>()?;
    let peak_bytes = memory::peak_bytes().filter(|_| peak_is_known);
    Ok(Measured { iterations, resident_bytes, peak_bytes })
}

/// Does it once and waits for the device, which goes on by itself after the last call.
fn finish(work: &mut dyn Workload, device: &Device) -> Result<()> {
    work.run().failed("the work failed")?;
    device.synchronize().failed("the device failed")
}

fn iterate(work: &mut dyn Workload, device: &Device) -> Result<Iteration> {
    let (flops, cpu, wall) = (work::flops(), cpu_seconds(), Instant::now());
    finish(work, device)?;
    Ok(Iteration {
        wall_seconds: wall.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds().zip(cpu).map(|(after, before)| after - before),
        flops: work::flops() - flops,
    })
}

impl Measured {
    pub(crate) fn median_wall_seconds(&self) -> f64 {
        median(self.iterations.iter().map(|iteration| iteration.wall_seconds).collect())
    }

    pub(crate) fn best_wall_seconds(&self) -> f64 {
        self.iterations.iter().map(|iteration| iteration.wall_seconds).fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn median_cpu_seconds(&self) -> Option<f64> {
        self.all_cpu_seconds().map(median)
    }

    pub(crate) fn best_cpu_seconds(&self) -> Option<f64> {
        self.all_cpu_seconds().map(|seconds| seconds.into_iter().fold(f64::INFINITY, f64::min))
    }

    /// Counted operations of one iteration, in units of 10⁹; all iterations do the same.
    pub(crate) fn gflop(&self) -> f64 {
        self.iterations.last().map_or(0.0, |iteration| iteration.flops as f64 / 1e9)
    }

    fn all_cpu_seconds(&self) -> Option<Vec<f64>> {
        self.iterations.iter().map(|iteration| iteration.cpu_seconds).collect()
    }
}

/// The middle value, or the mean of the two; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count => (values[(count - 1) / 2] + values[count / 2]) / 2.0,
    }
}

/// Processor time of this process so far, user and system, all threads; `None` where the system does not tell.
#[cfg(unix)]
fn cpu_seconds() -> Option<f64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).ok()?;
    Some(std::time::Duration::from(time).as_secs_f64())
}

#[cfg(not(unix))]
fn cpu_seconds() -> Option<f64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_two() {
        assert_eq!(median(vec![3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 9.0, 2.0]), 3.0);
    }

    #[cfg(unix)]
    #[test]
    fn work_takes_processor_time() {
        let before = cpu_seconds().unwrap();
        let sum: u64 = (0..3_000_000u64).map(std::hint::black_box).sum();
        assert!(sum > 0 && cpu_seconds().unwrap() > before);
    }
}
