//! The `catelier` command: parse, resolve settings, call a room, render.

mod adapter_source;
mod base_source;
mod cli;
mod commands;
mod device;
mod easel;
mod embedded;
mod failure;
mod memory;
mod meter;
mod progress;
mod references;
mod run_folder;
mod scoring;
mod settings;
mod signals;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

/// Keeps the memory of freed tensors for the next ones: the system's allocator gives it back at once, and every tensor
/// costs its page faults again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Backward passes recurse once per operation, and the default stack of two mebibytes is too small for large models.
const STACK_BYTES: usize = 256 << 20;

fn main() -> ExitCode {
    quiet_candle();
    let cli = cli::Cli::parse();
    let run = move || match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    };
    match std::thread::Builder::new().stack_size(STACK_BYTES).spawn(run).map(|thread| thread.join()) {
        Ok(Ok(code)) => code,
        _ => ExitCode::from(failure::BUG),
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
