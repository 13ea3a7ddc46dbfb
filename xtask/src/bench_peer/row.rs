//! One line of the table.

use anyhow::Result;

use super::case::Case;
use super::programs::Answer;
use super::spread::Spread;

/// The header of the table, for [`Row::markdown`].
pub(super) const HEAD: &str = "\
| work | shape | latent | precision | rounds | CPU time | peak memory | share of an f32 product |
|---|---|---|---|---|---|---|---|
";

/// One case, measured several times.
pub(super) struct Row {
    pub(super) case: Case,
    /// CPU time of Catelier divided by Python's, one ratio for each round.
    cpu_ratios: Vec<f64>,
    memory_ratios: Vec<f64>,
    /// Catelier's operations per second of CPU time, in units of 10⁹.
    rates: Vec<f64>,
    /// The reports of Catelier and Python, one pair for each round.
    pub(super) answers: Vec<(Answer, Answer)>,
}

impl Row {
    pub(super) fn new(case: Case) -> Self {
        Self { case, cpu_ratios: vec![], memory_ratios: vec![], rates: vec![], answers: vec![] }
    }

    /// Adds the reports of one round.
    pub(super) fn add(&mut self, ours: Answer, theirs: Answer) -> Result<()> {
        self.cpu_ratios.push(ours.cpu_seconds()? / theirs.cpu_seconds()?);
        self.memory_ratios.push(ours.peak_bytes()? / theirs.peak_bytes()?);
        self.rates.push(ours.gflop.unwrap_or(0.0) / ours.cpu_seconds()?);
        self.answers.push((ours, theirs));
        Ok(())
    }

    /// The line of the table.
    pub(super) fn markdown(&self) -> String {
        let Case { shape, dtype, .. } = &self.case;
        let latent = self.case.latent().map_or("–".to_string(), |latent| latent.to_string());
        let (cpu, memory) =
            (Spread::of(&self.cpu_ratios).with_digits(2), Spread::of(&self.memory_ratios).with_digits(2));
        let (what, rounds, share) = (self.case.what(), self.answers.len(), self.share());
        format!("| {what} | {shape} | {latent} | {dtype} | {rounds} | {cpu} | {memory} | {share} |\n")
    }

    /// The two commands behind the line.
    pub(super) fn commands(&self, threads: usize) -> String {
        let Self { case, .. } = self;
        format!("catelier {}\npython recipe/bench_peer.py {}\n", case.ours(threads), case.theirs(threads))
    }

    /// Catelier's rate divided by the fastest f32 product of the same rounds, since the CPU's speed changes from hour
    /// to hour.
    fn share(&self) -> String {
        let answers = self.answers.iter().flat_map(|(ours, theirs)| [ours, theirs]);
        let best = answers.filter_map(|answer| answer.product_rate("f32")).max_by(f64::total_cmp);
        best.map_or("–".to_string(), |best| format!("{:.0} %", 100.0 * Spread::of(&self.rates).median / best))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{from_value, json};

    use super::*;

    /// A report that either program might print.
    fn answer(seconds: f64, peak: u64, products: f64) -> Answer {
        let rate = |rate: f64| json!({ "gflop_per_cpu_second": rate });
        let answer = json!({
            "cpu_seconds": { "median": seconds },
            "memory_bytes": { "peak": peak },
            "gflop": 100.0,
            "matrix_product": { "f32": rate(products), "bf16": rate(2.0 * products) },
            "versions": { "torch": "2" },
            "version": "0.1.0",
        });
        from_value(answer).unwrap()
    }

    /// A row of two rounds.
    pub(in super::super) fn row(case: &str) -> Row {
        let mut row = Row::new(case.parse().unwrap());
        row.add(answer(1.0, 500, 80.0), answer(2.0, 1000, 125.0)).unwrap();
        row.add(answer(1.0, 600, 90.0), answer(4.0, 1000, 100.0)).unwrap();
        row
    }

    #[test]
    fn a_line_has_ratios_with_their_spread_and_the_share_of_its_own_products() {
        let cells = "sd15 | 64 | mixed | 2 | 0.38 (0.25–0.50) | 0.55 (0.50–0.60) | 80 % |\n";
        let line = row("cat --latent 64 --dtype mixed --copies 1").markdown();
        assert_eq!(line, format!("| cat, beside one copy of the weights | {cells}"));
        assert!(row("text").markdown().starts_with("| text | sd15 | – | f32 | 2 |"));
    }

    #[test]
    fn work_that_took_no_time_is_no_result() {
        assert!(Row::new("text".parse().unwrap()).add(answer(1.0, 1, 1.0), answer(0.0, 1, 1.0)).is_err());
    }
}
