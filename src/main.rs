//! The `catelier` command: parse, call a workflow, render what it reports.

mod cli;
mod commands;
mod device;
mod failure;
mod memory;
mod progress;
mod render;
mod shell;
mod signals;
mod terminal;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use catelier_workflows::Context;
use clap::Parser;

/// The system's allocator gives the memory of every freed tensor back at once, and the next one costs its page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Backward passes recurse once per operation, and the default stack of two mebibytes is too small for large models.
const STACK_BYTES: usize = 256 << 20;

fn main() -> ExitCode {
    quiet_candle();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return failure::report_usage(&answer),
    };
    // The command itself runs on one of the threads that share the work: from outside, every loop would wait for one of
    // them to wake up.
    let threads = rayon::ThreadPoolBuilder::new().num_threads(cli.threads.unwrap_or(0)).stack_size(STACK_BYTES).build();
    let run = move || match threads {
        Ok(threads) => threads.install(|| commands::run(cli)),
        Err(error) => Ok(Err(error).failed("cannot start the threads that share the work")?),
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => failure::report(&outcome),
        Err(_) => ExitCode::from(failure::BUG),
    }
}

/// Keeps candle's own threads out of the way: they spin while they wait for each other at every addition, which costs
/// more than the additions, and the kernels have their threads already. Candle takes the number from the environment.
#[expect(unsafe_code, reason = "the environment may be changed while there is one thread")]
fn quiet_candle() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: nothing has been started yet, so no other thread reads the environment.
        unsafe { std::env::set_var(THREADS, "1") }
    }
}
