//! One file per verb: settings, then a library call, then what a person or a program reads.

mod adapter;
mod base;
mod bench;
mod demo;
mod evaluate;
mod federate;
mod gallery;
mod plan;
mod preview;
mod train;

use std::path::Path;

use crate::cli::{Cli, Command};
use crate::failure::{Blame, Outcome};

/// Runs what was asked for.
pub(crate) fn run(cli: Cli) -> Outcome<()> {
    match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Train(args) => train::run(*args),
        Command::Plan(args) => plan::run(*args),
        Command::Preview(args) => preview::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Adapter(command) => adapter::run(&command),
        Command::Federate(command) => federate::run(&command),
        Command::Base(command) => base::run(&command),
        Command::Gallery(command) => gallery::run(&command),
        Command::Bench(command) => bench::run(&command),
    }
}

/// Makes the folder for results, so that a wrong path fails before the work and not after it.
pub(crate) fn output_folder(folder: &Path) -> Outcome<()> {
    std::fs::create_dir_all(folder).request(format!("cannot make the folder `{}`", folder.display()))
}

/// Writes a text file whole or not at all.
pub(crate) fn write_text(path: &Path, text: &str) -> Outcome<()> {
    catelier_numerics::atomic::write(path, |file| file.write_all(text.as_bytes()))
        .run(format!("cannot write `{}`", path.display()))
}
