//! Runs Catelier and the Python stack in turn on the same work, and writes down how they compare.

mod case;
mod page;
mod programs;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use case::{Case, Dtype, Work};
use page::{Page, Row};
use programs::Programs;

/// What is compared, how often, and where the result goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A Python that has what recipe/requirements.txt names
    #[arg(long, value_name = "PATH")]
    python: PathBuf,
    /// The program to measure [default: a release build made now]
    #[arg(long, value_name = "PATH")]
    catelier: Option<PathBuf>,
    /// Which work
    #[arg(long, value_enum, value_delimiter = ',', default_value = "unet,lora,cat,generate,vae,text")]
    work: Vec<Work>,
    /// Which shapes: sd15, sd21, sdxl, embedded
    #[arg(long, value_delimiter = ',', default_value = "sd15", value_name = "NAME")]
    shape: Vec<String>,
    /// Sides of the latents
    #[arg(long, value_delimiter = ',', default_value = "32", value_name = "N")]
    latent: Vec<usize>,
    /// Which precisions
    #[arg(long, value_enum, value_delimiter = ',', default_value = "f32")]
    dtype: Vec<Dtype>,
    /// Denoising steps of `generate`
    #[arg(long, default_value_t = 4, value_name = "N")]
    steps: usize,
    /// How often the two programs take turns
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Measured iterations of each turn
    #[arg(long, default_value_t = 1, value_name = "N")]
    repeat: usize,
    /// Iterations before them
    #[arg(long, default_value_t = 1, value_name = "N")]
    warmup: usize,
    /// Threads of both programs; with one, processor time can be compared on a busy machine
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: usize,
    /// The page to write
    #[arg(long, default_value = "docs/performance.md", value_name = "FILE")]
    out: PathBuf,
}

/// Measures every case; the page is written anew after each, so that an interrupted comparison leaves what it has.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0, "`--rounds` is 0, expected at least 1");
    let programs = Programs::find(&args.python, args.catelier.as_deref())?;
    let mut page = Page::new(args.threads, args.rounds, command_line(args));
    for case in cases(args) {
        page.add(measure(&programs, &case, args.rounds)?);
        write(&args.out, &page.markdown())?;
    }
    Ok(())
}

/// Every combination that was asked for; text has no latents, so it is taken once.
fn cases(args: &Args) -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in &args.shape {
        for dtype in &args.dtype {
            for work in &args.work {
                let latents = if work.has_latents() { args.latent.as_slice() } else { &args.latent[..1] };
                cases.extend(latents.iter().map(|latent| Case {
                    work: *work,
                    shape: shape.clone(),
                    latent: *latent,
                    dtype: *dtype,
                    steps: args.steps,
                    threads: args.threads,
                    repeat: args.repeat,
                    warmup: args.warmup,
                }));
            }
        }
    }
    cases
}

/// A B A B …
fn measure(programs: &Programs, case: &Case, rounds: usize) -> Result<Row> {
    let mut row = Row::new(case.clone());
    for round in 1..=rounds {
        tell(&format!("{case}: round {round} of {rounds}"));
        let (ours, theirs) = (programs.catelier(case)?, programs.peer(case)?);
        row.add(ours, theirs)?;
    }
    Ok(row)
}

/// This command as another person would write it.
fn command_line(args: &Args) -> String {
    let Args { work, shape, latent, dtype, steps, rounds, repeat, warmup, threads, .. } = args;
    let what =
        format!("--work {} --shape {} --latent {} --dtype {}", list(work), list(shape), list(latent), list(dtype));
    let how = format!("--steps {steps} --rounds {rounds} --repeat {repeat} --warmup {warmup} --threads {threads}");
    format!("cargo xtask bench-peer --python PYTHON {what} {how}")
}

fn list(values: &[impl ToString]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[expect(clippy::disallowed_methods, reason = "the page is made anew after every row, and is under version control")]
fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

#[expect(clippy::print_stderr, reason = "a person waits for minutes")]
fn tell(line: &str) {
    eprintln!("{line}");
}
