//! One file per verb: flags become a request, a workflow does the work, and its result is printed.

mod adapter;
mod base;
mod bench;
mod demo;
mod evaluate;
mod federate;
mod gallery;
mod plan;
mod preview;
mod style;
mod train;

use crate::cli::{Cli, Command};
use crate::failure::Outcome;
use crate::render;

/// Runs what was asked for.
pub(crate) fn run(cli: Cli) -> Outcome<()> {
    let session = render::session();
    match cli.command {
        Command::Demo(args) => demo::run(args, &session),
        Command::Train(args) => train::run(*args, &session),
        Command::Plan(args) => plan::run(*args, &session),
        Command::Preview(args) => preview::run(args, &session),
        Command::Evaluate(args) => evaluate::run(args, &session),
        Command::Adapter(command) => adapter::run(command, &session),
        Command::Federate(command) => federate::run(command, &session),
        Command::Style(command) => style::run(command, &session),
        Command::Base(command) => base::run(&command, &session),
        Command::Gallery(command) => gallery::run(&command, &session),
        Command::Bench(command) => bench::run(&command, &session),
    }
}
