//! `catelier plan`: what `train` would do with the same flags.

use candle_core::Device;
use catelier_bench::product_rate;
use catelier_pipelines::plan::{Bytes, MemoryPlan};
use catelier_prompts::Trigger;
use serde::Serialize;

use crate::base_source::{self, BaseSource};
use crate::cli::PlanArgs;
use crate::commands::train;
use crate::failure::{Blame, Outcome};
use crate::planning::{self, Plan};
use crate::settings::{TrainSettings, stated};
use crate::terminal;

/// What is printed.
#[derive(Serialize)]
struct Report {
    pictures: usize,
    base: String,
    resolution: usize,
    batch: usize,
    steps: usize,
    /// Times that a picture is seen, on average.
    epochs: f64,
    gflop_per_step: f64,
    /// At the rate of a plain matrix product with weights of this type on all threads; `null` on a GPU.
    seconds_per_step_at_least: Option<f64>,
    memory: Option<Memory>,
}

#[derive(Serialize)]
struct Memory {
    peak_bytes: u64,
    weight_bytes: u64,
    limit_bytes: Option<u64>,
    /// Module paths, in the order the data meets them.
    recomputed_blocks: Vec<String>,
    blocks: usize,
    extra_gflop_per_backward_pass: f64,
}

pub(super) fn run(args: PlanArgs) -> Outcome<()> {
    let asked = args.settings.resolve()?;
    let source = BaseSource::parse(asked.base.as_deref().unwrap_or("embedded"))?;
    let files = source.files()?;
    let base = base_source::config(&files)?;
    let settings = asked.complete(&planning::defaults(&base, source.is_embedded()));
    let trigger = Trigger::new(&stated("trigger", settings.trigger.clone())?).request("cannot use the trigger")?;
    let pictures = train::pictures(&settings, &trigger)?;
    let plan = planning::plan(&base, &settings, &settings.device()?)?;
    let report = Report::new(files.name(), pictures.frame_count(), &settings, &plan)?;
    if args.json { terminal::json(&report) } else { terminal::data(&report.table()) }
}

impl Report {
    fn new(base: &str, pictures: usize, settings: &TrainSettings, plan: &Plan) -> Outcome<Self> {
        let (steps, batch) = (stated("steps", settings.steps)?, stated("batch", settings.batch)?);
        let gflop_per_step = plan.step_flops as f64 / 1e9;
        Ok(Self {
            pictures,
            base: base.to_owned(),
            resolution: stated("resolution", settings.resolution)?,
            batch,
            steps,
            epochs: (steps * batch * stated("accumulation", settings.accumulation)?) as f64 / pictures.max(1) as f64,
            gflop_per_step,
            seconds_per_step_at_least: match &plan.memory {
                None => None,
                Some(_) => Some(gflop_per_step / rate(settings)?),
            },
            memory: plan.memory.as_ref().map(|memory| Memory::new(memory, plan.limit)),
        })
    }

    fn table(&self) -> String {
        let Self { pictures, base, resolution, batch, steps, epochs, .. } = self;
        let mut lines = vec![
            format!("pictures  {pictures}"),
            format!("base      {base}, {resolution} px, batch {batch}"),
            format!("steps     {steps}, each picture {epochs:.1} times"),
        ];
        let at_least = self
            .seconds_per_step_at_least
            .map_or_else(String::new, |seconds| format!(", at least {seconds:.2} s on this CPU"));
        lines.push(format!("work      {:.1} GFLOP a step{at_least}", self.gflop_per_step));
        lines.push(match &self.memory {
            None => "memory    not planned on this device".into(),
            Some(memory) => format!("memory    {memory}"),
        });
        lines.join("\n")
    }
}

impl Memory {
    fn new(plan: &MemoryPlan, limit_bytes: Option<u64>) -> Self {
        Self {
            peak_bytes: plan.peak,
            weight_bytes: plan.weights,
            limit_bytes,
            recomputed_blocks: plan.recomputed.clone(),
            blocks: plan.blocks,
            extra_gflop_per_backward_pass: plan.extra_flops as f64 / 1e9,
        }
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "about {}, of them {} weights", Bytes(self.peak_bytes), Bytes(self.weight_bytes))?;
        if let Some(limit) = self.limit_bytes {
            write!(out, "; limit {}", Bytes(limit))?;
        }
        match self.recomputed_blocks.len() {
            0 => write!(out, "; nothing is recomputed"),
            recomputed => write!(
                out,
                "; {recomputed} of {} blocks are recomputed, {:.1} GFLOP more in each backward pass{}",
                self.blocks,
                self.extra_gflop_per_backward_pass,
                self.levels()
            ),
        }
    }
}

impl Memory {
    /// The blocks that are recomputed, a line for each level of the UNet.
    fn levels(&self) -> String {
        let levels = self.recomputed_blocks.chunk_by(|a, b| level_and_block(a).0 == level_and_block(b).0);
        let line = |paths: &[String]| {
            let blocks: Vec<&str> = paths.iter().map(|path| level_and_block(path).1).collect();
            format!("\n          {}: {}", level_and_block(&paths[0]).0, blocks.join(", "))
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

/// Operations per second of a plain product with weights of the run's type, in units of 10⁹.
fn rate(settings: &TrainSettings) -> Outcome<f64> {
    const SIDE: usize = 768;
    let rate = product_rate(SIDE, settings.weights_dtype()?, &Device::Cpu, 3);
    Ok(rate.run("cannot measure a matrix product")?.gflop_per_second)
}
