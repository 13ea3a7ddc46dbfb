//! Chores of this repository that need more than cargo: `cargo xtask --help`.

mod bench_peer;
mod count_instructions;
mod crash;
mod output;
mod release;

use clap::Parser;

/// Chores of this repository.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
enum Chore {
    /// Measure Catelier beside torch, diffusers and PEFT, and write docs/performance.md
    BenchPeer(bench_peer::Args),
    /// Count the instructions of the hot kernels by callgrind, whatever else the machine does meanwhile
    CountInstructions(count_instructions::Args),
    /// Kill commands at random moments and at system calls that write, and compare what they leave in the end
    Crash(crash::Args),
}

fn main() -> anyhow::Result<()> {
    match Chore::parse() {
        Chore::BenchPeer(args) => bench_peer::run(&args),
        Chore::CountInstructions(args) => count_instructions::run(&args),
        Chore::Crash(args) => crash::run(&args),
    }
}
