//! A family of random styles: each is a function of its seed, and redraws any scene as an artist does.
//!
//! The base model is trained on many of them, so that an adapter can teach it a style that it has not seen. The artists
//! of [`Artist`](crate::Artist) are held out: no style is made after one of them.

mod choices;
mod coarse;
mod fill;
mod lattice;
mod paint;
mod palette;
mod pigments;
#[cfg(test)]
mod tests;
mod tint;

use self::choices::{Choices, Edge, Extent, Hand, Stroke};
use self::fill::Fill;
use self::lattice::Lattice;
use self::paint::Painting;
use self::palette::Palette;
use crate::geometry::Point;
use crate::render::Image;
use crate::rng::Rng;
use crate::scene::{OUTLINE_WIDTH, Scene};
use crate::vocabulary::Triple;

/// A style composed at random: palette, fills, outlines, edges, paper and frame.
#[derive(Clone, Debug)]
pub struct RandomStyle {
    choices: Choices,
    palette: Palette,
    object: Fill,
    sky: Fill,
    ground: Fill,
    /// The fill of small things in the setting.
    plain: Fill,
    line: Line,
    lattice: Lattice,
    /// Width of a halo in canvas units.
    halo: f32,
    /// Width of a border in canvas units.
    border: f32,
    /// Reach of a blur in canvas units.
    blur: usize,
    /// The most that a torn edge moves, in canvas units.
    torn: f32,
    /// Where a shadow falls, in canvas units from the object.
    shadow: Point,
}

/// The measures of outlines, in canvas units.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// What is added to the width of the house style.
    extra: f32,
    /// Where the object's colours lie, beside its lines.
    slip: Point,
    /// Half the distance of doubled lines.
    apart: Point,
    tremor: f32,
    /// Reach of the light of glowing lines.
    glow: f32,
}

impl RandomStyle {
    /// The style of `seed`: any seed has one, the same on every machine.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed, "style");
        let choices = Choices::draw(&mut rng);
        let palette = Palette::draw(&choices, &mut rng);
        let object = Fill::draw(choices.object, true, &mut rng);
        let setting = Fill::draw(choices.setting, false, &mut rng);
        let alike = choices.setting == choices.object && rng.chance(0.5);
        let setting = if alike { object.clone() } else { setting };
        let turned = setting.turned(if rng.chance(0.5) { 0.0 } else { rng.between(40.0, 90.0) });
        Self {
            choices,
            palette,
            object,
            sky: if choices.extent == Extent::Ground { Fill::solid() } else { setting },
            ground: if choices.extent == Extent::Sky { Fill::solid() } else { turned },
            plain: Fill::solid(),
            line: Line::draw(&choices, &mut rng),
            lattice: Lattice::new(&mut rng),
            halo: rng.between(7.0, 15.0),
            border: rng.between(14.0, 26.0),
            blur: if choices.edge == Edge::Bled { 5 + rng.below(5) } else { 3 + rng.below(2) },
            torn: rng.between(5.0, 8.0),
            shadow: (if rng.chance(0.5) { 1.0 } else { -1.0 } * rng.between(5.0, 12.0), rng.between(4.0, 14.0)),
        }
    }

    /// The words for what is conspicuous in the style, at most five, all of [`RandomStyle::vocabulary`]: palette, fills,
    /// outlines, edges, paper and frame, in this order.
    pub fn words(&self) -> Vec<&'static str> {
        self.choices.words()
    }

    /// Every word that a style can have, by choice and without repetition.
    pub fn vocabulary() -> Vec<&'static str> {
        choices::vocabulary()
    }

    /// The caption of a picture in this style, such as `a red house in a field, duotone, hatched, cream`.
    pub fn caption(&self, triple: Triple) -> String {
        let words = self.words().into_iter().map(|word| format!(", {word}"));
        words.fold(triple.caption(), |caption, word| caption + &word)
    }

    /// `scene` in this style, at full canvas size.
    pub fn redraw(&self, scene: &Scene) -> Image {
        Painting::new(self, scene).image(1)
    }

    /// `scene` in this style, `side` pixels wide and high: 32, 64, 128 or 256.
    ///
    /// Up to 64 pixels, a quarter of the canvas' pixels is painted: that is about four times as fast as a reduced
    /// [`RandomStyle::redraw`], and looks the same.
    pub fn redraw_at(&self, scene: &Scene, side: usize) -> Image {
        let step = if side > 64 { 1 } else { 2 };
        Painting::new(self, scene).image(step).reduced(side)
    }
}

impl Line {
    fn draw(choices: &Choices, rng: &mut Rng) -> Self {
        let width = match choices.stroke {
            Stroke::Absent | Stroke::Medium => rng.between(6.0, 8.0),
            Stroke::Fine => rng.between(3.6, 4.6),
            Stroke::Bold => rng.between(10.0, 14.0),
        };
        let width = if choices.edge == Edge::Pixelated { width.max(7.0) } else { width };
        let slip = rng.between(7.0, 12.0);
        let (right, down) = (if rng.chance(0.5) { slip } else { -slip }, rng.jitter(slip));
        Self {
            extra: width - OUTLINE_WIDTH,
            slip: if choices.hand == Hand::Slipped { (right, down) } else { (0.0, 0.0) },
            apart: (rng.between(3.0, 5.0), rng.jitter(5.0)),
            tremor: rng.between(4.0, 7.0),
            glow: rng.between(16.0, 32.0),
        }
    }
}
