//! `catelier evaluate`: how much of the base an adapter kept, and how well it learned.

use catelier_workflows::evaluation::{METRICS, Metric, Scaled, Scores};
use catelier_workflows::{Error, EvaluateRequest, Session, evaluate};

use crate::cli::{EvaluateArgs, Requirement};
use crate::failure::{Failure, Outcome};
use crate::terminal;

pub(super) fn run(args: EvaluateArgs, session: &Session<'_>) -> Outcome<()> {
    let request = EvaluateRequest {
        adapter: args.adapter,
        trigger: args.trigger,
        references: args.references,
        prompts: args.prompts,
        prompts_per_kind: None,
        seeds: args.seeds,
        clip: args.clip,
        style_model: args.style_model,
        others: args.others,
        sampling: args.sampling,
        base: args.base.into(),
        out: args.out,
        force: args.force,
    };
    let evaluated = evaluate(&request, session);
    if matches!(evaluated, Err(Error::Cancelled)) {
        terminal::say("nothing was scored, and no new image is kept; the same command begins anew");
    }
    let scores = evaluated?.scores;
    if args.json {
        terminal::json(&scores)?
    } else {
        print(&scores)?
    }
    args.require.iter().try_for_each(|requirement| requirement.check(&scores))
}

fn print(scores: &Scores) -> Outcome<()> {
    for metric in &METRICS {
        if let Some(score) = metric.of(scores) {
            let name = metric.name;
            let line = format!("{name:<18} {:.3}  ({:.3} to {:.3}, n {})", score.mean, score.low, score.high, score.n);
            terminal::data(&(line + &scale(metric, scores)))?;
        }
    }
    if let (Some(found), Some(other)) = (scores.artist_found, &scores.nearest_other) {
        terminal::data(&format!("{:<18} {:.3}  (nearest other: {})", "artist_found", found.mean, other.name))?;
    }
    Ok(())
}

/// What was measured, and between what it was scaled.
fn scale(metric: &Metric, scores: &Scores) -> String {
    let scaled = metric.scale.as_ref().and_then(|scale| scale.of(scores));
    scaled.map_or_else(String::new, |Scaled { raw, floor, ceiling, .. }| {
        format!("  {:.3} between {floor:.3} and {ceiling:.3}", raw.mean)
    })
}

impl Requirement {
    fn check(&self, scores: &Scores) -> Outcome<()> {
        let (Metric { name, needs, .. }, least) = (self.metric, self.least);
        match self.metric.of(scores).map(|score| score.mean) {
            Some(found) if found >= least => Ok(()),
            Some(found) => Err(Failure::NotReached(format!("{name} is {found:.3}, required {least}"))),
            None => Err(Failure::NotReached(format!("{name} could not be measured: it needs {needs}"))),
        }
    }
}
