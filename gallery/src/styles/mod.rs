//! The artists, who redraw a scene, each in a style that the base model has never seen.

mod craft;
mod drawing;
pub(crate) mod field;
mod glass;
mod ink;
mod light;
mod lines;
mod paint;
mod print;
mod screen;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod view;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::render::Image;
use crate::scene::Scene;
use crate::vocabulary::Triple;

/// An artist: a name, a sentence about the style, and the function that draws in it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Artist {
    /// One lowercase word.
    pub name: &'static str,
    /// One sentence about the style.
    pub description: &'static str,
    #[serde(skip)]
    style: fn(&Scene) -> Image,
}

/// The default artist of demonstrations.
pub const DEFAULT_ARTIST: &str = "goldleaf";

macro_rules! artists {
    ($($name:literal, $style:path, $description:literal;)+) => {
        &[$(Artist { name: $name, description: $description, style: $style }),+]
    };
}

const ARTISTS: &[Artist] = artists! {
    "blueprint", lines::blueprint, "White construction lines on blue paper with a measuring grid.";
    "chalk", drawing::chalk, "Dusty coloured chalk on a dark school board.";
    "comic", print::comic, "Bold outlines, white halos, bright rays and big halftone dots from a comic book.";
    "contour", lines::contour, "One loose ink line over a misplaced patch of flat colour.";
    "crayon", drawing::crayon, "Wobbly wax-crayon scribbles that leave the paper showing.";
    "dots", paint::dots, "Pointillist dabs of pure, wavering colour.";
    "echo", lines::echo, "Rings of colour that repeat the object's outline out to the edges.";
    "embroidery", craft::embroidery, "Shiny thread stitched in short rows on linen.";
    "engraving", ink::engraving, "Sepia lines of an old print, thicker where it is darker.";
    "glass", glass::stained, "A church window: saturated glass between thick black leads.";
    "goldleaf", light::goldleaf, "An icon in gold leaf on dark red.";
    "handheld", screen::handheld, "Four greens and chunky pixels of an early handheld console.";
    "hatch", ink::hatch, "Brown pen hatching on cream paper, on dusk blue at night.";
    "lowpoly", glass::lowpoly, "Flat triangular facets without a single outline.";
    "mosaic", craft::mosaic, "Small square stones set in pale mortar.";
    "neon", light::neon, "Glowing tubes of coloured light in the dark.";
    "papercut", craft::papercut, "Layers of cut paper with white edges and soft shadows.";
    "pastel", paint::pastel, "Soft pastel chalk dissolving in lilac fog.";
    "poster", print::poster, "Five flat poster colours and very thick navy outlines.";
    "riso", print::riso, "Two misaligned inks, pink and teal, flat shapes on big dots.";
    "sumi", ink::sumi, "Grey ink washes and a wet black brush, signed with a red seal.";
    "thermal", screen::thermal, "A heat camera's view: cold violet surroundings, a white-hot object.";
    "tiedye", paint::tiedye, "Rippling rings of dye spread out from the middle.";
    "vase", ink::vase, "Black figures with scratched lines on terracotta, framed by a meander.";
    "wash", paint::wash, "Pale watercolour bleeding over rough paper with a bare border.";
    "woodcut", ink::woodcut, "A dark block with broad, tapering gouges of pale paper.";
};

/// Every artist, as the gallery's list shows them: `{"artists": [{"name": …, "description": …}]}`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Catalogue {
    /// The artists, by name.
    pub artists: &'static [Artist],
}

impl Catalogue {
    /// The whole gallery.
    pub fn new() -> Self {
        Self { artists: Artist::all() }
    }
}

impl Default for Catalogue {
    fn default() -> Self {
        Self::new()
    }
}

impl Artist {
    /// Every artist, by name.
    pub fn all() -> &'static [Self] {
        ARTISTS
    }

    /// The artist called `name`.
    ///
    /// # Errors
    /// [`Error::UnknownArtist`].
    pub fn named(name: &str) -> Result<&'static Self> {
        let unknown = || Error::UnknownArtist { name: name.to_owned() };
        ARTISTS.iter().find(|artist| artist.name == name).ok_or_else(unknown)
    }

    /// The scene of `triple` and `seed` in the artist's style, at full canvas size.
    ///
    /// The geometry is the same as in the house style for the same seed, so that a pair of images differs in style
    /// alone.
    pub fn draw(&self, triple: Triple, seed: u64) -> Image {
        self.redraw(&Scene::draw(triple, seed))
    }

    /// `scene` in the artist's style, at full canvas size.
    pub fn redraw(&self, scene: &Scene) -> Image {
        (self.style)(scene)
    }
}
