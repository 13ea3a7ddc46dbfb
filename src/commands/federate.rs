//! `catelier federate`: combine adapters, play a federation of drawn artists, or run the rounds of a real one.

use catelier_workflows::simulate::SimulationScore;
use catelier_workflows::{AggregateRequest, Error, Session, SimulateRequest, aggregate, simulate};

use crate::cli::{AggregateArgs, FederateCommand, SimulateArgs};
use crate::failure::Outcome;
use crate::{shell, terminal};

mod round;

pub(super) fn run(command: FederateCommand, session: &Session<'_>) -> Outcome<()> {
    match command {
        FederateCommand::Aggregate(args) => run_aggregate(args, session),
        FederateCommand::Simulate(args) => run_simulate(args, session),
        FederateCommand::Round(command) => round::run(command, session),
    }
}

fn run_aggregate(args: AggregateArgs, session: &Session<'_>) -> Outcome<()> {
    let AggregateArgs { adapter: adapters, strategy, rank, base, out, force, json } = args;
    let report = aggregate(&AggregateRequest { adapters, strategy, rank, base, out, force }, session)?;
    if json {
        return terminal::json(&report);
    }
    terminal::say(&format!("distance from the exact mean of the updates: {:.4} of its norm", report.relative_distance));
    Ok(())
}

fn run_simulate(args: SimulateArgs, session: &Session<'_>) -> Outcome<()> {
    let request = SimulateRequest { settings: args.settings, resume: args.resume, out: args.out, force: args.force };
    let simulated = simulate(&request, session);
    if matches!(simulated, Err(Error::Cancelled)) {
        terminal::say(&format!(
            "go on with: catelier federate simulate --resume --out {}",
            shell::quoted(&request.out)
        ));
    }
    let simulation = simulated?;
    if args.json { terminal::json(&simulation) } else { terminal::lines(table(&simulation.scores)) }
}

fn table(scores: &[SimulationScore]) -> Vec<String> {
    let mut lines =
        vec![format!("{:<12} {:<9} {:>6} {:>8} {:>13}", "artist", "adapter", "style", "content", "kps_no_token")];
    lines.extend(scores.iter().map(|score| {
        let [style, content] =
            [score.style, score.content].map(|score| score.map_or("-".into(), |score| format!("{score:.3}")));
        let SimulationScore { artist, adapter, kps_no_token, .. } = score;
        format!("{artist:<12} {adapter:<9} {style:>6} {content:>8} {kps_no_token:>13.3}")
    }));
    lines
}
