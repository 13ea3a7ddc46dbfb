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

/// Backward passes recurse once per operation, and the default stack of two mebibytes is too small for large models.
const STACK_BYTES: usize = 256 << 20;

fn main() -> ExitCode {
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
