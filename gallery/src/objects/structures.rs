//! Things people build: the house and the boat.

use super::{BROWN, CREAM};
use crate::geometry::Pen;
use crate::palette::{Rgb, Tones};
use crate::scene::Sketch;

pub(super) fn house(sketch: &mut Sketch, tones: Tones) {
    sketch.body(Pen::rectangle(0.36, -0.88, 0.6, -0.3), tones.dark);
    sketch.body(Pen::rectangle(-0.78, -0.12, 0.78, 0.92), tones.main);
    sketch.body(Pen::polygon(&[(-1.04, -0.1), (0.0, -1.0), (1.04, -0.1)]), tones.dark);
    sketch.part(Pen::rectangle(-0.2, 0.32, 0.2, 0.92), BROWN);
    for x in [-0.5, 0.5] {
        sketch.part(Pen::rectangle(x - 0.17, 0.1, x + 0.17, 0.44), Rgb::new(255, 240, 150));
    }
}

pub(super) fn boat(sketch: &mut Sketch, tones: Tones) {
    sketch.rod(Pen::at(0.0, -0.98).line(0.0, 0.4), 4.0, BROWN, false);
    sketch.part(Pen::at(0.1, -0.92).quad(0.72, -0.4, 0.84, 0.22).line(0.1, 0.22).close(), CREAM);
    sketch.body(Pen::polygon(&[(-0.1, -0.7), (-0.1, 0.22), (-0.72, 0.22)]), tones.light);
    let hull =
        Pen::at(-1.04, 0.36).line(1.04, 0.36).quad(0.9, 0.8, 0.62, 0.92).line(-0.62, 0.92).quad(-0.9, 0.8, -1.04, 0.36);
    sketch.body(hull.close(), tones.main);
    let stripe = Pen::polygon(&[(-0.88, 0.64), (0.88, 0.64), (0.8, 0.77), (-0.8, 0.77)]);
    sketch.tone(stripe, tones.dark);
}
