//! `catelier preview`: images with adapters, beside the base if asked.

use catelier_workflows::style::Commission;
use catelier_workflows::{PreviewRequest, Session, output, preview};

use crate::cli::PreviewArgs;
use crate::failure::Outcome;
use crate::terminal;

pub(super) fn run(args: PreviewArgs, session: &Session<'_>) -> Outcome<()> {
    if args.json {
        output::check_utf8(&args.out, "JSON")?;
    }
    let request = PreviewRequest {
        prompts: args.prompt,
        prompt_set: args.prompts,
        adapters: args.adapter,
        commission: args.index.map(|index| Commission { index, artists: args.artist, mix: args.mix }),
        compare: args.compare,
        trigger: args.trigger,
        references: args.references,
        count: args.count,
        sampling: args.sampling,
        base: args.base.into(),
        out: args.out,
        force: args.force,
    };
    for preview in preview(&request, session)? {
        match args.json {
            true => terminal::json(&preview)?,
            false => terminal::data(&preview.file.display().to_string())?,
        }
    }
    Ok(())
}
