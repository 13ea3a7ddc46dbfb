//! `catelier preview`: draw with adapters, beside the base if asked.

use std::path::{Path, PathBuf};

use catelier_adapters::AdapterSet;
use catelier_pipelines::picture_file;
use catelier_pipelines::sheet::{Sheet, SheetRow};
use catelier_prompts::{PromptSet, Trigger};
use image::RgbImage;
use serde::Serialize;

use super::output_folder;
use crate::adapter_source::LoadedAdapters;
use crate::cli::PreviewArgs;
use crate::easel::{self, Easel};
use crate::failure::{Blame, Failure, Outcome};
use crate::{base_source, references, terminal};

/// Side in pixels to which small pictures are enlarged on a sheet.
const CELL_PX: u32 = 256;

pub(super) fn run(args: &PreviewArgs) -> Outcome<()> {
    let prompts = prompts(args)?;
    let references = references::read(args.references.as_deref())?;
    let (source, base) = base_source::load(&args.base)?;
    let base = easel::with_tiling(base, &args.sampling)?;
    let adapters = LoadedAdapters::read(&args.adapter, &base)?;
    let trigger = adapters.trigger(args.trigger.as_deref())?;
    output_folder(&args.out)?;
    let mut easel = Easel::new(&base, source.is_embedded(), &args.sampling)?;
    if args.compare {
        let trigger = trigger.ok_or_else(no_trigger)?;
        return compare(args, &prompts, &adapters, &trigger, &references, &mut easel);
    }
    draw(args, &prompts, &adapters, &mut easel)
}

/// One picture on disk, for `--json`.
#[derive(Serialize)]
struct Drawn<'a> {
    file: PathBuf,
    prompt: &'a str,
    seed: u64,
}

fn draw(args: &PreviewArgs, prompts: &[String], adapters: &LoadedAdapters, easel: &mut Easel<'_>) -> Outcome<()> {
    let (prompts, seeds) = with_seeds(prompts, args.count, args.sampling.seed);
    let names = adapters.names_and_hashes()?;
    let pictures = easel.draw("drawing", &prompts, &seeds, &adapters.set)?;
    for (index, picture) in pictures.iter().enumerate() {
        let (prompt, seed) = (&prompts[index], seeds[index]);
        let file = args.out.join(format!("{:03}-seed{seed}.png", index / args.count));
        let parameters = easel.parameters(prompt, seed, &names);
        picture_file::write_png(&file, picture, Some(&parameters)).run("cannot save a picture")?;
        tell(args.json, &Drawn { file, prompt, seed })?;
    }
    Ok(())
}

/// One sheet per prompt, a row per seed: base, adapter without the trigger, adapter with it, a training picture.
fn compare(
    args: &PreviewArgs,
    prompts: &[String],
    adapters: &LoadedAdapters,
    trigger: &Trigger,
    references: &[RgbImage],
    easel: &mut Easel<'_>,
) -> Outcome<()> {
    let without: Vec<String> = prompts.iter().map(|prompt| trigger.remove(prompt)).collect();
    let with: Vec<String> = without.iter().map(|prompt| trigger.insert(prompt).caption).collect();
    let (without, seeds) = with_seeds(&without, args.count, args.sampling.seed);
    let (with, _) = with_seeds(&with, args.count, args.sampling.seed);
    let columns = [
        easel.draw("base", &without, &seeds, &AdapterSet::base())?,
        easel.draw("no trigger", &without, &seeds, &adapters.set)?,
        easel.draw("with trigger", &with, &seeds, &adapters.set)?,
    ];
    let names = adapters.names_and_hashes()?;
    for (index, first) in (0..seeds.len()).step_by(args.count).enumerate() {
        let rows = (first..first + args.count).map(|row| SheetRow {
            label: format!("seed {}", seeds[row]),
            pictures: sheet_row(&columns, row, references),
        });
        let sheet = Sheet {
            title: without[first].clone(),
            subtitle: easel.caption(seeds[first]),
            columns: headings(trigger, !references.is_empty()),
            rows: rows.collect(),
            cell: CELL_PX,
        };
        let file = args.out.join(format!("compare-{index:03}.png"));
        let parameters = easel.parameters(&with[first], seeds[first], &names);
        let picture = sheet.compose().run("cannot compose the sheet")?;
        picture_file::write_png(&file, &picture, Some(&parameters)).run("cannot save a sheet")?;
        tell(args.json, &Drawn { file, prompt: &without[first], seed: seeds[first] })?;
    }
    Ok(())
}

fn sheet_row(columns: &[Vec<RgbImage>], row: usize, references: &[RgbImage]) -> Vec<Option<RgbImage>> {
    let drawn = columns.iter().map(|column| column.get(row).cloned());
    let reference = (!references.is_empty()).then(|| references.get(row % references.len()).cloned());
    drawn.chain(reference).collect()
}

fn headings(trigger: &Trigger, with_reference: bool) -> Vec<String> {
    let mut headings =
        vec!["base".to_string(), "adapter, no trigger".to_string(), format!("adapter, \"{}\"", trigger.word())];
    headings.extend(with_reference.then(|| "training picture".to_string()));
    headings
}

/// Every prompt `count` times, with seeds that count up.
fn with_seeds(prompts: &[String], count: usize, seed: u64) -> (Vec<String>, Vec<u64>) {
    let pairs = prompts.iter().flat_map(|prompt| (0..count as u64).map(move |add| (prompt.clone(), seed + add)));
    pairs.unzip()
}

fn prompts(args: &PreviewArgs) -> Outcome<Vec<String>> {
    if args.count == 0 {
        return Err(Failure::request("`--count` is 0", "ask for at least one picture per prompt"));
    }
    let mut prompts = args.prompt.clone();
    if let Some(name) = &args.prompts {
        let set = PromptSet::named_or_file(name).request("cannot read the prompts")?;
        let rendered = set.render(Default::default()).request("cannot use the prompts")?;
        prompts.extend(rendered.prompts.into_iter().map(|prompt| prompt.text));
    }
    Ok(prompts)
}

fn no_trigger() -> Failure {
    Failure::request(
        "`--compare` needs an adapter with a trigger",
        "give `--adapter FILE` and, if the file names none, `--trigger WORD`",
    )
}

fn tell(json: bool, drawn: &Drawn<'_>) -> Outcome<()> {
    if json { terminal::json(drawn) } else { terminal::data(&path_text(&drawn.file)) }
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}
