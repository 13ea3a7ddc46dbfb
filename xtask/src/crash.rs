//! Kills commands at random moments and at system calls that write, lets them go on, and compares what they leave with
//! an undisturbed run.

mod command;
mod hub;
mod kill;
mod outcome;
mod table;
mod tree;
mod trial;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use command::{COMMANDS, Command};
use hub::Hub;
use outcome::Row;
use table::Table;
use trial::{Course, Ground};

use crate::output::{print, tell};
use crate::release::repository;

/// Which commands are killed, and how often.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kills that must land, for each command
    #[arg(long, default_value_t = 20, value_name = "N")]
    kills: usize,
    /// Seed of the random moments
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Only these commands [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    command: Vec<String>,
    /// The program to kill
    #[arg(long, default_value = "target/debug/catelier", value_name = "FILE")]
    binary: PathBuf,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.kills > 0, "`--kills` is 0, expected at least 1");
    let binary = args.binary.canonicalize();
    let binary = binary.with_context(|| format!("no program at `{}`: build it first", args.binary.display()))?;
    let commands = chosen(&args.command)?;
    let traced = kill::can_trace();
    if !traced {
        tell("strace is not installed or may not trace: kills come at random moments only");
    }
    let hub = Hub::start(repository().join(trial::BASE))?;
    let ground = Ground::prepare(binary, &hub.endpoint)?;
    let mut table = Table::default();
    for command in commands {
        tell(&format!("{}:", command.name));
        let row = match Course::new(&ground, command, traced) {
            Ok(course) => course.play(args.kills, args.seed),
            Err(error) => Row::failed(command.name, &error),
        };
        // A campaign takes hours; whoever ends it early has the rows so far.
        tell(&table::told(&row));
        table.rows.push(row);
    }
    print(&if args.json { table.json()? } else { table.markdown() });
    ensure!(table.is_clean(), "kills had consequences");
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Command>> {
    let known = |name: &str| COMMANDS.iter().any(|command| command.name == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let names: Vec<_> = COMMANDS.iter().map(|command| command.name).collect();
        bail!("there is no command `{unknown}` here; expected one of {}", names.join(", "));
    }
    Ok(COMMANDS.iter().filter(|command| names.is_empty() || names.iter().any(|name| name == command.name)).collect())
}
