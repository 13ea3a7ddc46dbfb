//! `catelier plan`: what `train` would do with the same flags.

use std::fmt;

use candle_core::Device;
use catelier_bench::product_rate;
use catelier_pipelines::training::plan::Bytes;
use catelier_workflows::plan::{PlanReport, PlannedMemory};
use catelier_workflows::{Context, Result, Session, WeightType, plan};

use crate::cli::PlanArgs;
use crate::failure::Outcome;
use crate::terminal;

pub(super) fn run(args: PlanArgs, session: &Session<'_>) -> Outcome<()> {
    let asked = args.settings.asked()?;
    asked.check_required()?;
    let (mut report, settings) = plan(asked, session)?;
    if report.memory.is_some() {
        report.seconds_per_step_at_least = Some(report.gflop_per_step / rate(settings.dtype)?);
    }
    if args.json { terminal::json(&report) } else { terminal::lines(table(&report)) }
}

fn table(report: &PlanReport) -> Vec<String> {
    let PlanReport { images, base, resolution, batch, steps, epochs, .. } = report;
    let at_least = report.seconds_per_step_at_least;
    let at_least = at_least.map_or_else(String::new, |seconds| format!(", at least {seconds:.2} s on this CPU"));
    let memory = report.memory.as_ref();
    let told = memory.map_or_else(|| "not planned on this device".into(), |memory| Memory(memory).to_string());
    let mut lines = vec![
        format!("images    {images}"),
        format!("base      {base}, {resolution} px, batch {batch}"),
        format!("steps     {steps}, each image {epochs:.1} times"),
        format!("work      {:.1} GFLOP a step{at_least}", report.gflop_per_step),
        format!("memory    {told}"),
    ];
    lines.extend(memory.iter().flat_map(|memory| Memory(memory).levels()));
    lines
}

/// Planned memory as a person reads it.
struct Memory<'a>(&'a PlannedMemory);

impl fmt::Display for Memory<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.0;
        write!(out, "about {}, of them {} weights", Bytes(plan.peak_bytes), Bytes(plan.weight_bytes))?;
        if let Some(limit) = plan.limit_bytes {
            write!(out, "; limit {}", Bytes(limit))?;
        }
        match plan.recomputed_blocks.len() {
            0 => write!(out, "; no block is recomputed"),
            recomputed => write!(
                out,
                "; {recomputed} of {} blocks are recomputed, {:.1} GFLOP more in each backward pass",
                plan.blocks, plan.extra_gflop_per_backward_pass,
            ),
        }
    }
}

impl Memory<'_> {
    /// The blocks that are recomputed, a line for each level of the UNet.
    fn levels(&self) -> Vec<String> {
        let levels = self.0.recomputed_blocks.chunk_by(|a, b| level_and_block(a).0 == level_and_block(b).0);
        let line = |paths: &[String]| {
            let blocks: Vec<&str> = paths.iter().map(|path| level_and_block(path).1).collect();
            format!("          {}: {}", level_and_block(&paths[0]).0, blocks.join(", "))
        };
        levels.map(line).collect()
    }
}

/// `down_blocks.0` and `resnets.1` of `unet.down_blocks.0.resnets.1`.
fn level_and_block(path: &str) -> (&str, &str) {
    let path = path.strip_prefix("unet.").unwrap_or(path);
    let names = if path.starts_with("mid_block") { 1 } else { 2 };
    let end = path.match_indices('.').nth(names - 1).map_or(path.len(), |(position, _)| position);
    (&path[..end], path[end..].trim_start_matches('.'))
}

/// Operations per second of a plain product with weights of this type, in units of 10⁹.
fn rate(weights: WeightType) -> Result<f64> {
    const SIDE: usize = 768;
    let rate = product_rate(SIDE, weights.into(), &Device::Cpu, 3);
    Ok(rate.failed("cannot measure a matrix product")?.gflop_per_second)
}
