//! `catelier federate`: combine adapters, run rounds over a shared place, play a federation of drawn artists, or attack one.

use catelier_workflows::audit::{Isolation, Knows, Separation};
use catelier_workflows::evaluation::Score;
use catelier_workflows::simulate::SimulationScore;
use catelier_workflows::{
    AggregateRequest, Audit, AuditRequest, Error, Session, SimulateRequest, aggregate, audit, simulate,
};

use crate::cli::{AggregateArgs, AuditArgs, FederateCommand, SimulateArgs};
use crate::failure::Outcome;
use crate::{shell, terminal};

mod round;

pub(super) fn run(command: FederateCommand, session: &Session<'_>) -> Outcome<()> {
    match command {
        FederateCommand::Aggregate(args) => run_aggregate(args, session),
        FederateCommand::Simulate(args) => run_simulate(*args, session),
        FederateCommand::Audit(args) => run_audit(args, session),
        FederateCommand::Round(command) => round::run(command, session),
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

fn run_audit(args: AuditArgs, session: &Session<'_>) -> Outcome<()> {
    let json = args.json;
    let audit = audit(&AuditRequest::from(args), session)?;
    if json {
        return terminal::json(&audit);
    }
    terminal::say(isolation(audit.isolation));
    terminal::lines(copying_table(&audit))?;
    terminal::lines(membership_table(&audit))
}

impl From<AuditArgs> for AuditRequest {
    fn from(args: AuditArgs) -> Self {
        let AuditArgs { simulation, attacker, every, strengths, images, held_out, draws, sampling_steps, .. } = args;
        let AuditArgs { measure, seed, out, force, .. } = args;
        Self {
            simulation,
            attacker,
            every,
            strengths,
            images,
            held_out,
            draws,
            sampling_steps,
            measure,
            seed,
            out,
            force,
        }
    }
}

fn isolation(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Contribution => "the server attacks each artist's own contribution",
        Isolation::Mean => "the attacker takes its own part out of the mean, and attacks the others' part",
        Isolation::Estimate => "the attacker takes its own part out as if the rule were a mean: an estimate",
        Isolation::Nothing => "the attacker cannot take its own part out, and attacks the global adapter itself",
    }
}

/// All artists that were attacked together.
fn copying_table(audit: &Audit) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<18} {:<9} {:>6}  {:<31} {:<18}",
        "handed out", "knows", "images", "training images copied", "nearer (AUC)"
    )];
    lines.extend(audit.copying.iter().filter(|row| row.victim.is_none()).map(|row| {
        let handed_out = row.handed_out.as_deref().unwrap_or("nothing: the base");
        let knows = match row.knows {
            Knows::Nothing => "nothing",
            Knows::Trigger => "trigger",
            Knows::Captions => "captions",
        };
        let told = &row.copying.told;
        format!("{handed_out:<18} {knows:<9} {:>6}  {:<31} {:<18}", row.images, share(told), interval(&told.auc))
    }));
    lines
}

/// All artists that were attacked together.
fn membership_table(audit: &Audit) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<18} {:<9} {:<18} {:<31} {:<18}",
        "losses", "captions", "AUC", "found at 1 % false", "at 10 % false"
    )];
    lines.extend(audit.membership.iter().filter(|row| row.victim.is_none()).map(|row| {
        let captions = if row.with_trigger { "trigger" } else { "plain" };
        let (auc, at_10) = (interval(&row.told.auc), interval(&row.told.above_90));
        format!("{:<18} {captions:<9} {auc:<18} {:<31} {at_10:<18}", row.handed_out, share(&row.told))
    }));
    lines
}

fn interval(score: &Score) -> String {
    format!("{:.2} [{:.2}, {:.2}]", score.mean, score.low, score.high)
}

/// The share above the 99th percentile, with what so few images cannot rule out.
fn share(told: &Separation) -> String {
    format!("{}, at most {:.2}", interval(&told.above_99), told.above_99_at_most)
}
