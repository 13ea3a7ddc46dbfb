//! The result of a benchmark, as one JSON object or as a table.

use serde::Serialize;

use crate::{Measured, Precision, ProductRates, Request};

/// The measured work and its results; it serialises to the JSON of `catelier bench --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    work: &'static str,
    shape: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    latent: Option<usize>,
    batch: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<usize>,
    dtype: Precision,
    device: String,
    threads: usize,
    warmup: usize,
    repeat: usize,
    wall_seconds: Seconds,
    /// User and system time of the whole process.
    cpu_seconds: Option<Seconds>,
    /// Counted operations of one iteration, in units of 10⁹.
    gflop: f64,
    #[serde(flatten)]
    rate: Rate,
    memory_bytes: MemoryBytes,
    matrix_product: ProductRates,
    version: &'static str,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Seconds {
    median: f64,
    best: f64,
}

/// Memory of the process; `None` if the system does not report it.
#[derive(Debug, Clone, Copy, Serialize)]
struct MemoryBytes {
    after_loading: Option<u64>,
    peak: Option<u64>,
    /// Peak memory minus the memory after loading.
    over_loading: Option<u64>,
    /// The planner's estimate of a training step on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    planned: Option<u64>,
}

/// A rate of operations in units of 10⁹ per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// Operations per second of wall-clock time.
    pub gflop_per_second: f64,
    /// Operations per second of CPU time over all threads; `None` if the system does not report it.
    pub gflop_per_cpu_second: Option<f64>,
}

impl Report {
    /// Builds the report of a measured `request` on the named device. `planned_bytes` is the planner's estimate of
    /// memory; `matrix_product` are the rates to compare with.
    #[must_use]
    pub fn new(
        request: &Request,
        device: String,
        measured: &Measured,
        planned_bytes: Option<u64>,
        matrix_product: ProductRates,
    ) -> Self {
        let (work, loss, rank, steps) = request.work.words();
        Self {
            work,
            shape: request.shape.clone(),
            latent: request.latent,
            batch: request.batch,
            loss,
            rank,
            steps,
            dtype: request.precision,
            device,
            threads: rayon::current_num_threads(),
            warmup: request.warmup,
            repeat: request.repeat,
            wall_seconds: Seconds { median: measured.median_wall_seconds(), best: measured.best_wall_seconds() },
            cpu_seconds: measured
                .median_cpu_seconds()
                .zip(measured.best_cpu_seconds())
                .map(|(median, best)| Seconds { median, best }),
            gflop: measured.gflop(),
            rate: measured.median_rate(),
            memory_bytes: MemoryBytes::new(measured, planned_bytes),
            matrix_product,
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// The report as a table of a few lines.
    #[must_use]
    pub fn table(&self) -> String {
        let Seconds { median, best } = self.wall_seconds;
        let rows = [
            ("work", self.what()),
            ("time", format!("{median:.3} s median, {best:.3} s best of {}", self.repeat)),
            ("CPU", self.cpu_seconds.map_or_else(unknown, |cpu| format!("{:.3} s median", cpu.median))),
            ("counted", self.counted()),
            ("memory", self.memory_bytes.to_string()),
        ];
        rows.map(|(name, text)| format!("{name:<10} {text}")).join("\n")
    }

    fn what(&self) -> String {
        let Self { work, shape, batch, dtype, device, threads, .. } = self;
        let mut what = format!("{work} of {shape}");
        let mut add = |name: &str, value: Option<String>| what.extend(value.map(|value| format!(", {name} {value}")));
        add("loss", self.loss.map(str::to_owned));
        add("rank", self.rank.map(|rank| rank.to_string()));
        add("latent", self.latent.map(|latent| latent.to_string()));
        add("steps", self.steps.map(|steps| steps.to_string()));
        format!("{what}, batch {batch}, {dtype}, {device}, threads {threads}")
    }

    fn counted(&self) -> String {
        let (rate, peak) = (self.rate.gflop_per_second, self.matrix_product.f32.gflop_per_second);
        let share = 100.0 * rate / peak;
        format!("{:.2} GFLOP, {rate:.1} GFLOP/s, {share:.0} % of a plain f32 product's {peak:.1} here", self.gflop)
    }
}

impl MemoryBytes {
    fn new(measured: &Measured, planned: Option<u64>) -> Self {
        let (after_loading, peak) = (measured.resident_bytes, measured.peak_bytes);
        let over_loading = peak.zip(after_loading).map(|(peak, held)| peak.saturating_sub(held));
        Self { after_loading, peak, over_loading, planned }
    }
}

impl std::fmt::Display for MemoryBytes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [loaded, more, all] = [self.after_loading, self.over_loading, self.peak].map(gigabytes);
        write!(out, "{loaded} after loading, {more} more at most, {all} in all")?;
        self.planned.map_or(Ok(()), |planned| write!(out, "; planned {}", gigabytes(Some(planned))))
    }
}

fn gigabytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(unknown, |bytes| format!("{:.2} GB", bytes as f64 / 1e9))
}

fn unknown() -> String {
    "unknown".to_string()
}
