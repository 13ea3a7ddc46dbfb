//! `catelier demo`: the whole story on the embedded base, ending in one page.

use std::time::Instant;

use catelier_workflows::evaluation::{Metric, Scores};
use catelier_workflows::{DemoRequest, DemoScores, Error, Session, demo};

use crate::cli::DemoArgs;
use crate::failure::Outcome;
use crate::terminal;

pub(super) fn run(args: DemoArgs, session: &Session<'_>) -> Outcome<()> {
    let started = Instant::now();
    let usual = DemoRequest::default();
    let request = DemoRequest {
        out: args.out,
        force: args.force,
        artists: if args.artists.is_empty() { usual.artists } else { args.artists },
        steps: args.steps,
        prompts: args.prompts.unwrap_or(usual.prompts),
        sampling_steps: args.sampling_steps,
        seed: args.seed.unwrap_or(usual.seed),
    };
    let demo = demo(&request, session);
    if matches!(demo, Err(Error::Cancelled)) {
        let out = request.out.display();
        terminal::say(&format!("`{out}` has what was made so far and no new report; the same command begins anew"));
    }
    let demo = demo?;
    terminal::say(&format!("{:<12} {:<11} {}", "artist", "adapter", columns(|metric| metric.name.to_owned())));
    for DemoScores { artist, cat, lora } in &demo.artists {
        terminal::say(&row(artist, "CAT", cat));
        terminal::say(&row(artist, "plain LoRA", lora));
    }
    terminal::say(&format!("done in {:.0} s; open {}", started.elapsed().as_secs_f64(), demo.report.display()));
    Ok(())
}

fn row(artist: &str, adapter: &str, scores: &Scores) -> String {
    let score =
        |metric: &Metric| metric.of(scores).map_or_else(|| "-".to_owned(), |score| format!("{:.2}", score.mean));
    format!("{artist:<12} {adapter:<11} {}", columns(score))
}

/// The scores in front of all others, side by side.
fn columns(cell: impl Fn(&Metric) -> String) -> String {
    let cells: Vec<String> = Metric::headline().iter().map(|metric| format!("{:>12}", cell(metric))).collect();
    cells.join(" ")
}
