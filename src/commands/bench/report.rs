//! What `bench` tells: one JSON object, or a few lines.

use candle_core::Device;
use serde::Serialize;

use crate::cli::{BenchCommand, BenchLoss, BenchPrecision, ShapeName};
use crate::device;
use crate::meter::Measured;

/// What was measured, and of what.
#[derive(Serialize)]
pub(super) struct Report {
    work: &'static str,
    shape: ShapeName,
    #[serde(skip_serializing_if = "Option::is_none")]
    latent: Option<usize>,
    batch: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<BenchLoss>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<usize>,
    dtype: BenchPrecision,
    device: String,
    threads: usize,
    warmup: usize,
    repeat: usize,
    wall_seconds: WallSeconds,
    cpu_seconds: Option<CpuSeconds>,
    /// Counted operations of one iteration, in units of 10⁹.
    gflop: f64,
    #[serde(flatten)]
    rate: Rate,
    memory_bytes: MemoryBytes,
    matrix_product: MachinePeaks,
    version: &'static str,
}

#[derive(Serialize)]
struct WallSeconds {
    median: f64,
    best: f64,
}

/// User and system time of the whole process.
#[derive(Serialize)]
struct CpuSeconds {
    median: f64,
    best: f64,
}

/// `None` where the system does not tell.
#[derive(Serialize)]
struct MemoryBytes {
    after_loading: Option<u64>,
    peak: Option<u64>,
    /// The peak without what was held after loading.
    over_loading: Option<u64>,
    /// What the planner expects of a training step on the processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    planned: Option<u64>,
}

/// Operations in units of 10⁹, by time on the clock and by processor time.
#[derive(Serialize)]
pub(super) struct Rate {
    pub(super) gflop_per_second: f64,
    pub(super) gflop_per_cpu_second: Option<f64>,
}

/// The best rate of a large matrix product, by element type.
#[derive(Serialize)]
pub(super) struct MachinePeaks {
    pub(super) f32: Rate,
    pub(super) bf16: Rate,
}

impl Report {
    pub(super) fn new(
        command: &BenchCommand,
        latent: Option<usize>,
        device: &Device,
        measured: &Measured,
        matrix_product: MachinePeaks,
    ) -> Self {
        let args = command.args();
        let (work, loss, rank, steps) = match command {
            BenchCommand::Step { loss: BenchLoss::None, .. } => ("step", Some(BenchLoss::None), None, None),
            BenchCommand::Step { loss, rank, .. } => ("step", Some(*loss), Some(*rank), None),
            BenchCommand::Generate { steps, .. } => ("generate", None, None, Some(*steps)),
            BenchCommand::Vae { .. } => ("vae", None, None, None),
            BenchCommand::Text { .. } => ("text", None, None, None),
        };
        let (gflop, wall, cpu) = (measured.gflop(), measured.median_wall_seconds(), measured.median_cpu_seconds());
        Self {
            work,
            shape: args.shape,
            latent,
            batch: args.batch,
            loss,
            rank,
            steps,
            dtype: args.dtype,
            device: device::name(device),
            threads: rayon::current_num_threads(),
            warmup: args.warmup,
            repeat: args.repeat,
            wall_seconds: WallSeconds { median: wall, best: measured.best_wall_seconds() },
            cpu_seconds: cpu.zip(measured.best_cpu_seconds()).map(|(median, best)| CpuSeconds { median, best }),
            gflop,
            rate: Rate { gflop_per_second: gflop / wall, gflop_per_cpu_second: cpu.map(|cpu| gflop / cpu) },
            memory_bytes: MemoryBytes {
                after_loading: measured.resident_bytes,
                peak: measured.peak_bytes,
                over_loading: measured
                    .peak_bytes
                    .zip(measured.resident_bytes)
                    .map(|(peak, held)| peak.saturating_sub(held)),
                planned: None,
            },
            matrix_product,
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// The same with the memory that was planned.
    pub(super) fn with_plan(mut self, planned: Option<u64>) -> Self {
        self.memory_bytes.planned = planned;
        self
    }

    /// The same for a person.
    pub(super) fn table(&self) -> String {
        let rows = [
            ("work", self.what()),
            (
                "time",
                format!(
                    "{:.3} s median, {:.3} s best of {}",
                    self.wall_seconds.median, self.wall_seconds.best, self.repeat
                ),
            ),
            ("processor", self.cpu_seconds.as_ref().map_or_else(unknown, |cpu| format!("{:.3} s median", cpu.median))),
            ("counted", self.counted()),
            ("memory", self.memory_bytes.to_string()),
        ];
        rows.map(|(name, text)| format!("{name:<10} {text}")).join("\n")
    }

    fn what(&self) -> String {
        let Self { work, shape, batch, dtype, device, threads, .. } = self;
        let mut what = format!("{work} of {}", word(shape));
        let mut add = |name: &str, value: Option<String>| what.extend(value.map(|value| format!(", {name} {value}")));
        add("loss", self.loss.map(|loss| word(&loss)));
        add("rank", self.rank.map(|rank| rank.to_string()));
        add("latent", self.latent.map(|latent| latent.to_string()));
        add("steps", self.steps.map(|steps| steps.to_string()));
        format!("{what}, batch {batch}, {}, {device}, threads {threads}", word(dtype))
    }

    fn counted(&self) -> String {
        let (rate, peak) = (self.rate.gflop_per_second, self.matrix_product.f32.gflop_per_second);
        let share = 100.0 * rate / peak;
        format!("{:.2} GFLOP, {rate:.1} GFLOP/s, {share:.0} % of a plain f32 product's {peak:.1} here", self.gflop)
    }
}

impl std::fmt::Display for MemoryBytes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [loaded, more, all] = [self.after_loading, self.over_loading, self.peak].map(gigabytes);
        write!(out, "{loaded} after loading, {more} more at most, {all} in all")?;
        self.planned.map_or(Ok(()), |planned| write!(out, "; planned {}", gigabytes(Some(planned))))
    }
}

/// A name as its flag and its JSON have it.
fn word(name: &impl Serialize) -> String {
    serde_json::to_value(name).ok().and_then(|value| value.as_str().map(str::to_string)).unwrap_or_default()
}

fn gigabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(unknown, |bytes| format!("{:.2} GB", bytes as f64 / 1e9))
}

fn unknown() -> String {
    "unknown".to_string()
}
