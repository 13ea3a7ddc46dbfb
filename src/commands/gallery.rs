//! `catelier gallery`: the drawn world.

use catelier_workflows::gallery::export::{self, MODEL_SIDE, Request, Source, Split};
use catelier_workflows::gallery::{Artist, Catalogue};
use catelier_workflows::{Context, Error, drawn};

use crate::cli::{DrawArgs, DrawFormat, DrawSplit, GalleryCommand};
use crate::failure::Outcome;
use crate::terminal;

/// The name of the plain style that the embedded base knows.
const HOUSE: &str = "house";

pub(super) fn run(command: &GalleryCommand) -> Outcome<()> {
    match command {
        GalleryCommand::List { json } => list(*json),
        GalleryCommand::Draw(args) => draw(args),
    }
}

fn list(json: bool) -> Outcome<()> {
    if json {
        return terminal::json(&Catalogue::new());
    }
    Artist::all().iter().try_for_each(|artist| terminal::data(&format!("{:<11} {}", artist.name, artist.description)))
}

fn draw(args: &DrawArgs) -> Outcome<()> {
    match args.format {
        DrawFormat::Npy => draw_array(args)?,
        DrawFormat::Png => draw_folder(args)?,
    }
    terminal::say(&format!("{} images in {}", args.count, args.out.display()));
    Ok(())
}

fn draw_array(args: &DrawArgs) -> Outcome<()> {
    let request = Request {
        source: source(args)?,
        split: match args.split {
            DrawSplit::All => Split::All,
            DrawSplit::Train => Split::Train,
            DrawSplit::HeldOut => Split::HeldOut,
        },
        count: args.count,
        seed: args.seed,
        side: MODEL_SIDE,
    };
    Ok(export::write_npy(&args.out, &request).failed("cannot draw the images")?)
}

fn source(args: &DrawArgs) -> Outcome<Source> {
    if args.textures {
        return Ok(Source::Textures);
    }
    match args.artist.as_str() {
        HOUSE => Ok(Source::House),
        name => Ok(Source::Artist(drawn::artist(name)?)),
    }
}

fn draw_folder(args: &DrawArgs) -> Outcome<()> {
    if args.textures || args.artist == HOUSE || args.split != DrawSplit::All {
        return Err(Error::user(
            "PNG folders are drawn by an artist, from all scenes",
            "name one of `catelier gallery list`, or use `--format npy`",
        )
        .into());
    }
    let artist = drawn::artist(&args.artist)?;
    Ok(export::write_folder(&args.out, artist, args.count, args.seed).user_error("cannot draw the images")?)
}
