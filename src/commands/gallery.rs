//! `catelier gallery`: the drawn world.

use catelier_workflows::drawn::{self, Drawing};
use catelier_workflows::gallery::export::{MODEL_SIDE, Request, Source, Split};
use catelier_workflows::gallery::{Artist, Catalogue};
use catelier_workflows::{Error, Session};

use crate::cli::{DrawArgs, DrawFormat, DrawSplit, GalleryCommand};
use crate::failure::Outcome;
use crate::terminal;

/// The name of the plain style that the embedded base knows.
const HOUSE: &str = "house";

pub(super) fn run(command: &GalleryCommand, session: &Session<'_>) -> Outcome<()> {
    match command {
        GalleryCommand::List { json } => list(*json),
        GalleryCommand::Draw(args) => draw(args, session),
    }
}

fn list(json: bool) -> Outcome<()> {
    if json {
        return terminal::json(&Catalogue::new());
    }
    terminal::lines(Artist::all().iter().map(|artist| format!("{:<11} {}", artist.name, artist.description)))
}

fn draw(args: &DrawArgs, session: &Session<'_>) -> Outcome<()> {
    let drawing = match args.format {
        DrawFormat::Npy => Drawing::Array(array(args)?),
        DrawFormat::Png => folder(args)?,
    };
    drawn::draw_into(&args.out, drawing, args.force, session)?;
    terminal::say(&format!("{} images in {}", args.count, args.out.display()));
    Ok(())
}

fn array(args: &DrawArgs) -> Outcome<Request> {
    Ok(Request {
        source: source(args)?,
        split: match args.split {
            DrawSplit::All => Split::All,
            DrawSplit::Train => Split::Train,
            DrawSplit::HeldOut => Split::HeldOut,
        },
        count: args.count,
        seed: args.seed,
        side: MODEL_SIDE,
    })
}

fn source(args: &DrawArgs) -> Outcome<Source> {
    if args.textures {
        return Ok(Source::Textures);
    }
    if let Some(styles) = args.family {
        return Ok(Source::Family { styles: styles.get() });
    }
    match args.artist.as_str() {
        HOUSE => Ok(Source::House),
        name => Ok(Source::Artist(drawn::artist(name)?)),
    }
}

fn folder(args: &DrawArgs) -> Outcome<Drawing> {
    if args.textures || args.split != DrawSplit::All {
        let message = "a folder of PNG files shows scenes, and all of them";
        return Err(Error::user(message, "use `--format npy`").into());
    }
    Ok(Drawing::Folder { source: source(args)?, count: args.count, seed: args.seed })
}
