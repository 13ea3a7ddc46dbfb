//! Chores of this repository that need more than cargo: `cargo xtask --help`.

mod bench_peer;

use clap::Parser;

/// Chores of this repository.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
enum Chore {
    /// Measure Catelier beside torch, diffusers and PEFT, and write docs/performance.md
    BenchPeer(bench_peer::Args),
}

fn main() -> anyhow::Result<()> {
    match Chore::parse() {
        Chore::BenchPeer(args) => bench_peer::run(&args),
    }
}
