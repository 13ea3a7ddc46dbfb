//! Runs Catelier and the Python stack in turn on the same work, and writes down how they compare.

mod case;
mod page;
mod programs;
mod row;
mod spread;
mod standard;

use std::path::PathBuf;

use anyhow::Result;

use case::Case;
use page::Page;
use programs::Programs;
use row::Row;
use standard::STANDARD;

use crate::output::tell;

/// What is compared, and where the result goes.
#[derive(Debug, clap::Args)]
#[command(after_help = case::help())]
pub(crate) struct Args {
    /// A Python that has what recipe/requirements.txt names
    #[arg(long, value_name = "PATH")]
    python: PathBuf,
    /// The program to measure [default: a release build made now]
    #[arg(long, value_name = "PATH")]
    catelier: Option<PathBuf>,
    /// Measure this, such as "cat --shape sd15 --latent 64 --rounds 2"; may be repeated [default: the standard table]
    #[arg(long = "case", value_name = "CASE")]
    cases: Vec<Case>,
    /// Threads of both programs; with one, CPU time can be compared on a busy machine
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: usize,
    /// The page to write; what stands below its marker is kept
    #[arg(long, default_value = "docs/performance.md", value_name = "FILE")]
    out: PathBuf,
}

/// Measures every case. The page is written after each case, so that an interrupted comparison keeps its results.
pub(crate) fn run(args: &Args) -> Result<()> {
    page::below_marker(&args.out)?;
    let programs = Programs::find(&args.python, args.catelier.as_deref(), args.threads)?;
    let mut page = Page::new(args.threads, command_line(args));
    for case in cases(args)? {
        page.add(measure(&programs, case)?);
        page.write(&args.out)?;
    }
    Ok(())
}

/// The cases of `--case`, or the standard ones.
fn cases(args: &Args) -> Result<Vec<Case>> {
    if !args.cases.is_empty() {
        return Ok(args.cases.clone());
    }
    STANDARD.iter().map(|text| text.parse().map_err(|reason| anyhow::anyhow!("`{text}`: {reason}"))).collect()
}

/// Measures both programs in turn: A B A B …
fn measure(programs: &Programs, case: Case) -> Result<Row> {
    let mut row = Row::new(case.clone());
    for round in 1..=case.rounds {
        tell(&format!("{case}: round {round} of {}", case.rounds));
        let (ours, theirs) = (programs.catelier(&case)?, programs.peer(&case)?);
        row.add(ours, theirs)?;
    }
    Ok(row)
}

/// The command line that repeats this comparison.
fn command_line(args: &Args) -> String {
    let threads = if args.threads == 1 { String::new() } else { format!(" --threads {}", args.threads) };
    let cases: String = args.cases.iter().map(|case| format!(" --case \"{case}\"")).collect();
    format!("cargo xtask bench-peer --python PYTHON{threads}{cases}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        let words = ["bench-peer", "--python", "PYTHON"].iter().chain(line);
        Command::try_parse_from(words).map(|command| command.args)
    }

    #[test]
    fn without_a_case_the_standard_table_is_measured() {
        let args = parse(&[]).unwrap();
        let texts: Vec<String> = cases(&args).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(texts, STANDARD);
        assert_eq!(command_line(&args), "cargo xtask bench-peer --python PYTHON");
    }

    #[test]
    fn a_page_repeats_the_cases_that_it_was_asked_for() {
        let args = parse(&["--threads", "2", "--case", "cat  --latent 64", "--case", "text"]).unwrap();
        assert_eq!(cases(&args).unwrap().len(), 2);
        let cases = "--case \"cat --latent 64\" --case \"text\"";
        assert_eq!(command_line(&args), format!("cargo xtask bench-peer --python PYTHON --threads 2 {cases}"));
    }

    #[test]
    fn an_error_names_the_case() {
        let error = parse(&["--case", "cat", "--case", "lora --side 3"]).unwrap_err().to_string();
        assert!(error.contains("'lora --side 3'") && error.contains("unexpected argument '--side' found"), "{error}");
    }
}
