//! The page that people read: ratios with their spread, and the command behind every row.

use std::collections::BTreeMap;

use anyhow::Result;

use super::case::Case;
use super::programs::Answer;

/// How to read the table.
const READING: &str = "\
Numbers are Catelier ÷ Python: the median of the rounds, with the lowest and the highest in brackets. Below 1, Catelier
needs less. Time is processor time (user and system) of a warm iteration; memory is the most that the whole process holds
during the iterations. Weights are random, of full shape, made in memory.

`unet` is a forward pass. `lora` and `cat` are optimizer steps of rank 8 on the attention of the UNet; the Python stack
takes `cat` as its authors do, with a second, frozen UNet, three passes and one backward. `generate` is guided DDIM and the
decoder, `vae` encodes and decodes, `text` reads a prompt. `mixed` is frozen weights in bf16 and the adapter in f32, in the
Python stack under autocast. The last column is how close Catelier comes to a plain f32 matrix product, by the better of the two programs;
work with weights in bf16 can exceed it.
";

const ROWS_HEAD: &str = "\
| work | shape | latent | precision | processor time | peak memory | share of an f32 product |
|---|---|---|---|---|---|---|
";

const MACHINE_HEAD: &str = "\
Products of two 1024 × 1024 matrices, GFLOP per second of processor time, median (lowest–highest):

| program | element type | rate |
|---|---|---|
";

/// What was compared so far.
pub(super) struct Page {
    threads: usize,
    rounds: usize,
    command: String,
    rows: Vec<Row>,
}

/// One case, measured several times.
pub(super) struct Row {
    case: Case,
    /// Catelier's over Python's, one for each round.
    cpu_ratios: Vec<f64>,
    memory_ratios: Vec<f64>,
    /// Catelier's operations per second of processor time, in units of 10⁹.
    rates: Vec<f64>,
    answers: Vec<(Answer, Answer)>,
}

impl Row {
    pub(super) fn new(case: Case) -> Self {
        Self { case, cpu_ratios: vec![], memory_ratios: vec![], rates: vec![], answers: vec![] }
    }

    /// Notes one round.
    pub(super) fn add(&mut self, ours: Answer, theirs: Answer) -> Result<()> {
        self.cpu_ratios.push(ours.cpu_seconds()? / theirs.cpu_seconds()?);
        self.memory_ratios.push(ours.peak_bytes()? / theirs.peak_bytes()?);
        self.rates.push(ours.gflop.unwrap_or(0.0) / ours.cpu_seconds()?);
        self.answers.push((ours, theirs));
        Ok(())
    }

    fn markdown(&self, peak: Option<f64>) -> String {
        let Case { work, shape, latent, dtype, .. } = &self.case;
        let latent = if work.has_latents() { latent.to_string() } else { "–".to_string() };
        let share = peak.map_or("–".to_string(), |peak| format!("{:.0} %", 100.0 * spread(&self.rates).1 / peak));
        let (cpu, memory) = (ratio(&self.cpu_ratios), ratio(&self.memory_ratios));
        format!("| {work} | {shape} | {latent} | {dtype} | {cpu} | {memory} | {share} |")
    }
}

impl Page {
    pub(super) fn new(threads: usize, rounds: usize, command: String) -> Self {
        Self { threads, rounds, command, rows: Vec::new() }
    }

    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub(super) fn markdown(&self) -> String {
        let peaks = self.peaks();
        let best = best_f32(&peaks);
        let rows: String = self.rows.iter().map(|row| row.markdown(best) + "\n").collect();
        let machine: String = peaks.iter().map(|(name, rates)| peak_row(name, rates)).collect();
        let commands: String = self.rows.iter().map(|row| commands(&row.case)).collect();
        [
            format!("# Speed and memory beside the Python stack\n\n{}\n\n{READING}", self.subject()),
            format!("{ROWS_HEAD}{rows}"),
            format!("## The machine\n{}.\n\n{MACHINE_HEAD}{machine}", processor()),
            format!("## Commands\nThis page:\n```\n{}\n```\nIts rows:\n```\n{commands}```\n", self.command),
        ]
        .join("\n")
    }

    /// What is compared with what.
    fn subject(&self) -> String {
        let threads = if self.threads == 1 { "one thread".to_string() } else { format!("{} threads", self.threads) };
        let turns = if self.rounds == 1 { "once".to_string() } else { format!("{} times in turn", self.rounds) };
        let (version, libraries) = (self.version(), self.libraries());
        format!("Catelier {version} and {libraries}, on {threads} of the processor each, {turns}.")
    }

    fn version(&self) -> String {
        self.rows.iter().flat_map(|row| &row.answers).find_map(|(ours, _)| ours.version.clone()).unwrap_or_default()
    }

    fn libraries(&self) -> String {
        let versions = self.rows.iter().flat_map(|row| &row.answers).map(|(_, theirs)| &theirs.versions).next();
        let names = versions.into_iter().flatten().map(|(name, version)| format!("{name} {version}"));
        names.collect::<Vec<_>>().join(", ")
    }

    /// Rates of large products by program and element type, one for each time they were measured.
    fn peaks(&self) -> BTreeMap<(&'static str, String), Vec<f64>> {
        let mut peaks = BTreeMap::<_, Vec<f64>>::new();
        for (ours, theirs) in self.rows.iter().flat_map(|row| &row.answers) {
            for (program, answer) in [("Catelier", ours), ("torch", theirs)] {
                for (dtype, rate) in &answer.matrix_product {
                    let rate = rate.and_then(|rate| rate.gflop_per_cpu_second);
                    peaks.entry((program, dtype.clone())).or_default().extend(rate);
                }
            }
        }
        peaks.retain(|_, rates| !rates.is_empty());
        peaks
    }
}

/// The two commands behind a row.
fn commands(case: &Case) -> String {
    format!("catelier {}\npython recipe/bench_peer.py {}\n", case.ours(), case.theirs())
}

fn peak_row((program, dtype): &(&'static str, String), rates: &[f64]) -> String {
    let (low, median, high) = spread(rates);
    format!("| {program} | {dtype} | {median:.0} ({low:.0}–{high:.0}) |\n")
}

/// What this machine can do in f32 by the better of the two programs.
fn best_f32(peaks: &BTreeMap<(&'static str, String), Vec<f64>>) -> Option<f64> {
    let medians = peaks.iter().filter(|((_, dtype), _)| dtype == "f32").map(|(_, rates)| spread(rates).1);
    medians.max_by(f64::total_cmp)
}

fn ratio(values: &[f64]) -> String {
    let (low, median, high) = spread(values);
    format!("{median:.2} ({low:.2}–{high:.2})")
}

/// Lowest, median and highest; zeros of nothing.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => (0.0, 0.0, 0.0),
        [low, .., high] => (*low, (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0, *high),
        [one] => (*one, *one, *one),
    }
}

/// What the system calls the processor.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or("Unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {cores} logical cores")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_lowest_median_and_highest() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), (1.0, 2.5, 4.0));
        assert_eq!(spread(&[5.0]), (5.0, 5.0, 5.0));
    }

    #[test]
    fn ratios_are_never_without_their_spread() {
        assert_eq!(ratio(&[0.5, 0.75, 0.625]), "0.62 (0.50–0.75)");
    }
}
