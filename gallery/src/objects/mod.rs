//! The ten objects, drawn in their own coordinates from -1 to 1 (y downwards).

mod animals;
mod household;
mod plants;
mod structures;

use crate::palette::{Rgb, Tones};
use crate::rng::Rng;
use crate::scene::Sketch;
use crate::vocabulary::{Colour, Object};

const CREAM: Rgb = Rgb::new(255, 247, 222);
const BROWN: Rgb = Rgb::new(122, 76, 44);
const LEAF: Rgb = Rgb::new(70, 148, 60);

/// Adds the shapes of `object` in `colour` to `sketch`, the farthest first.
pub(crate) fn draw(object: Object, colour: Colour, sketch: &mut Sketch, rng: &mut Rng) {
    let tones = varied(Tones::of(colour), rng);
    match object {
        Object::House => structures::house(sketch, tones),
        Object::Boat => structures::boat(sketch, tones),
        Object::Tree => plants::tree(sketch, tones),
        Object::Flower => plants::flower(sketch, tones),
        Object::Mushroom => plants::mushroom(sketch, tones, colour),
        Object::Fish => animals::fish(sketch, tones),
        Object::Cat => animals::cat(sketch, tones),
        Object::Star => household::star(sketch, tones),
        Object::Mug => household::mug(sketch, tones),
        Object::Umbrella => household::umbrella(sketch, tones),
    }
}

/// The tones, a little lighter or darker in each image.
fn varied(tones: Tones, rng: &mut Rng) -> Tones {
    let amount = rng.jitter(8.0);
    Tones { main: tones.main.shifted(amount), dark: tones.dark.shifted(amount), light: tones.light.shifted(amount) }
}
