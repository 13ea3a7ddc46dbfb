//! `catelier demo`: the whole story on the embedded base, ending in one page.

use std::time::Instant;

use catelier_workflows::evaluation::Scores;
use catelier_workflows::{DemoRequest, Error, Session, demo};

use crate::cli::DemoArgs;
use crate::failure::Outcome;
use crate::terminal;

pub(super) fn run(args: DemoArgs, session: &Session<'_>) -> Outcome<()> {
    let started = Instant::now();
    let usual = DemoRequest::default();
    let request = DemoRequest {
        out: args.out,
        force: args.force,
        artist: args.artist.unwrap_or(usual.artist),
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
    terminal::say(&summary("CAT", &demo.cat));
    terminal::say(&summary("plain LoRA", &demo.lora));
    terminal::say(&format!("done in {:.0} s; open {}", started.elapsed().as_secs_f64(), demo.report.display()));
    Ok(())
}

fn summary(name: &str, scores: &Scores) -> String {
    let identity = scores.identity.map_or_else(|| "-".to_string(), |identity| format!("{:.3}", identity.mean));
    format!("{name:<11} kept {:.3} (kps_no_token), style {identity} (identity)", scores.kps_no_token.mean)
}
