//! `catelier gallery`: the drawn world.

use std::path::Path;

use catelier_gallery::export::{self, MODEL_SIDE, Request, Source, Split};
use catelier_gallery::{Artist, Catalogue};

use crate::cli::{DrawArgs, DrawFormat, DrawSplit, GalleryCommand};
use crate::failure::{Blame, Failure, Outcome};
use crate::terminal;

/// The name of the plain style that the embedded base knows.
const HOUSE: &str = "house";

pub(super) fn run(command: &GalleryCommand) -> Outcome<()> {
    match command {
        GalleryCommand::List { json } => list(*json),
        GalleryCommand::Draw(args) => draw(args),
    }
}

/// Draws a training folder, in place of what an earlier run of the same command drew there.
pub(super) fn write_pictures(artist: &'static Artist, count: usize, seed: u64, folder: &Path) -> Outcome<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).run(format!("cannot replace `{}`", folder.display()))?;
    }
    export::write_folder(folder, artist, count, seed).run("cannot draw the pictures")
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
    terminal::say(&format!("{} pictures in {}", args.count, args.out.display()));
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
    export::write_npy(&args.out, &request).run("cannot draw the pictures")
}

fn source(args: &DrawArgs) -> Outcome<Source> {
    if args.textures {
        return Ok(Source::Textures);
    }
    match args.artist.as_str() {
        HOUSE => Ok(Source::House),
        name => Ok(Source::Artist(Artist::named(name).request("cannot draw")?)),
    }
}

fn draw_folder(args: &DrawArgs) -> Outcome<()> {
    if args.textures || args.artist == HOUSE || args.split != DrawSplit::All {
        return Err(Failure::request(
            "PNG folders are drawn by an artist, from all scenes",
            "name one of `catelier gallery list`, or use `--format npy`",
        ));
    }
    let artist = Artist::named(&args.artist).request("cannot draw")?;
    export::write_folder(&args.out, artist, args.count, args.seed).request("cannot draw the pictures")
}
