//! `catelier federate`: combine adapters, or play a federation of drawn artists.

use catelier_workflows::simulate::SimulationScore;
use catelier_workflows::{AggregateRequest, Error, Session, SimulateRequest, aggregate, simulate};

use crate::cli::{AggregateArgs, FederateCommand, SimulateArgs};
use crate::failure::Outcome;
use crate::{shell, terminal};

pub(super) fn run(command: FederateCommand, session: &Session<'_>) -> Outcome<()> {
    match command {
        FederateCommand::Aggregate(args) => run_aggregate(args, session),
        FederateCommand::Simulate(args) => run_simulate(args, session),
    }
}

fn run_aggregate(args: AggregateArgs, session: &Session<'_>) -> Outcome<()> {
    let json = args.json;
    let report = aggregate(&request(args), session)?;
    if json {
        return terminal::json(&report);
    }
    if report.round > 0 {
        let distance = report.relative_distance;
        terminal::say(&format!("distance from the exact mean of the updates: {distance:.4} of its norm"));
    }
    Ok(())
}

fn request(args: AggregateArgs) -> AggregateRequest {
    AggregateRequest {
        adapters: args.adapter,
        replies: args.replies,
        strategy: args.strategy,
        rank: args.rank,
        plan: args.plan,
        start: args.start,
        round: args.round,
        state: args.state,
        next: args.next,
        skip_refused: args.skip_refused,
        base: args.base,
        out: args.out,
        force: args.force,
    }
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
