//! The page that people read: ratios with their spread, and the command behind every row.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::row::{HEAD, Row};
use super::spread::Spread;

/// How to read the table.
const READING: &str = "\
Numbers are Catelier ÷ Python: the median of the rounds, with the lowest and the highest in brackets. Below 1, Catelier
needs less. Time is CPU time (user and system) of a warm iteration; memory is the most that the whole process holds
during the iterations. Weights are random, of full shape, made in memory.

`unet` is a forward pass. `lora` and `cat` are optimizer steps on the attention of the UNet, of rank 8 and with one sample
where the row says nothing else. The Python stack takes `cat` as its authors do, with a second, frozen UNet, three passes and
one backward; *beside one copy of the weights*, it switches the adapter off for the base's prediction instead, as PEFT makes
possible. *Within* some memory is Catelier with that `--memory-limit`. `generate` is guided DDIM and the decoder, `vae`
encodes and decodes, `text` reads a prompt. `mixed` is frozen weights in bf16 and the adapter in f32, in the Python stack
under autocast.

The last column is how close Catelier comes to a plain f32 matrix product, the fastest that either program made in the
row's rounds; work with weights in bf16 can exceed it. It counts products that were really made: most 3 × 3 convolutions
make a quarter of those that their definition asks for (`kernels/src/panels/winograd.rs`), so that it is lower than
the speed.
";

const PRODUCTS_HEAD: &str = "\
Products of two 1024 × 1024 matrices in the same runs, GFLOP per second of CPU time, median (lowest–highest):

| program | element type | rate |
|---|---|---|
";

/// The line above the part of the page that is written by hand.
const MARKER: &str = "<!-- Everything above is written by cargo xtask bench-peer; what is below stays. -->";

/// The cases that were compared so far.
pub(super) struct Page {
    threads: usize,
    command: String,
    rows: Vec<Row>,
}

impl Page {
    pub(super) fn new(threads: usize, command: String) -> Self {
        Self { threads, command, rows: Vec::new() }
    }

    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Writes the page; the text below the marker is kept.
    #[expect(
        clippy::disallowed_methods,
        reason = "the page is made anew after every row, and is under version control"
    )]
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = format!("{}\n{MARKER}{}", self.markdown(), below_marker(path)?);
        std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
    }

    fn markdown(&self) -> String {
        let rows: String = self.rows.iter().map(Row::markdown).collect();
        let commands: String = self.rows.iter().map(|row| row.commands(self.threads)).collect();
        [
            format!("# Speed and memory beside the Python stack\n\n{}\n\n{READING}", self.subject()),
            format!("{HEAD}{rows}"),
            format!("## The machine\n{}.\n\n{PRODUCTS_HEAD}{}", cpu_name(), self.products()),
            format!("## Commands\nThis page:\n```\n{}\n```\nIts rows:\n```\n{commands}```\n", self.command),
        ]
        .join("\n")
    }

    /// The paragraph that names the compared programs and the number of threads.
    fn subject(&self) -> String {
        let threads = if self.threads == 1 { "one thread".to_string() } else { format!("{} threads", self.threads) };
        let (version, libraries) = (self.version(), self.libraries());
        format!("Catelier {version} and {libraries},\nin turn, on {threads} of the CPU each.")
    }

    fn version(&self) -> String {
        self.rows.iter().flat_map(|row| &row.answers).find_map(|(ours, _)| ours.version.clone()).unwrap_or_default()
    }

    fn libraries(&self) -> String {
        let versions = self.rows.iter().flat_map(|row| &row.answers).map(|(_, theirs)| &theirs.versions).next();
        let names = versions.into_iter().flatten().map(|(name, version)| format!("{name} {version}"));
        names.collect::<Vec<_>>().join(", ")
    }

    /// Rates of large products by program and element type, over all rounds of all rows.
    fn products(&self) -> String {
        let mut rates = BTreeMap::<_, Vec<f64>>::new();
        for (ours, theirs) in self.rows.iter().flat_map(|row| &row.answers) {
            for (program, answer) in [("Catelier", ours), ("torch", theirs)] {
                for dtype in ["bf16", "f32"] {
                    rates.entry((program, dtype)).or_default().extend(answer.product_rate(dtype));
                }
            }
        }
        let known = rates.iter().filter(|(_, rates)| !rates.is_empty());
        let cells = known.map(|(name, rates)| (name, Spread::of(rates).with_digits(0)));
        cells.map(|((program, dtype), rate)| format!("| {program} | {dtype} | {rate} |\n")).collect()
    }
}

/// The text below the marker of an existing page. A page without a marker is refused, since all of it might be written
/// by hand.
pub(super) fn below_marker(path: &Path) -> Result<String> {
    if !path.exists() {
        return Ok("\n".to_string());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let (_, below) = text.split_once(MARKER).with_context(|| {
        format!("`{}` would be overwritten: it lacks the line `{MARKER}`, below which everything stays", path.display())
    })?;
    Ok(below.to_string())
}

/// The system's name of the CPU.
fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or("Unknown CPU", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {cores} logical cores")
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::row;
    use super::*;

    fn page() -> Page {
        let mut page = Page::new(1, "cargo xtask bench-peer --python PYTHON".to_string());
        page.add(row("cat --memory-limit 3GB"));
        page
    }

    #[test]
    fn a_page_tells_its_command_and_those_of_every_row() {
        let text = page().markdown();
        let peer = "python recipe/bench_peer.py cat --shape sd15 --latent 32";
        let ours = "catelier bench step --loss cat --shape sd15 --latent 32";
        for line in
            [peer, ours, "cargo xtask bench-peer --python PYTHON\n", "| cat, within 3GB | sd15 | 32 | f32 | 2 |"]
        {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn products_are_told_over_all_rounds_of_all_rows() {
        let mut page = page();
        page.add(row("lora"));
        let rows = ["Catelier | bf16 | 170 (160–180)", "torch | f32 | 112 (100–125)"];
        assert!(rows.iter().all(|row| page.products().contains(row)), "{}", page.products());
    }

    #[test]
    fn what_a_person_wrote_below_the_marker_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.md");
        page().write(&path).unwrap();
        assert_eq!(below_marker(&path).unwrap(), "\n");
        let old = format!("# Old\n{MARKER}\n\n## By hand\n");
        #[expect(clippy::disallowed_methods, reason = "nobody interrupts a test's page")]
        std::fs::write(&path, old).unwrap();
        for _ in 0..2 {
            page().write(&path).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# Speed") && text.ends_with(&format!("\n{MARKER}\n\n## By hand\n")), "{text}");
        assert!(!text.contains("# Old"), "{text}");
    }

    #[test]
    fn a_page_without_the_marker_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.md");
        #[expect(clippy::disallowed_methods, reason = "nobody interrupts a test's page")]
        std::fs::write(&path, "# By hand\n").unwrap();
        assert!(page().write(&path).unwrap_err().to_string().contains("would be overwritten"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "# By hand\n");
    }
}
