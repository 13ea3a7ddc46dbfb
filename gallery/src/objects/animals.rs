//! Living things: the fish and the cat.

use crate::geometry::Pen;
use crate::palette::{Rgb, Tones, WHITE};
use crate::scene::{OUTLINE, Sketch};

pub(super) fn fish(sketch: &mut Sketch, tones: Tones) {
    sketch.body(Pen::polygon(&[(0.5, 0.0), (1.08, -0.56), (0.94, 0.0), (1.08, 0.56)]), tones.dark);
    sketch.body(Pen::at(-0.26, -0.46).quad(0.06, -0.98, 0.46, -0.84).line(0.36, -0.3).close(), tones.dark);
    let body = Pen::at(-1.0, 0.02).cubic((-0.7, -0.78), (0.2, -0.78), (0.7, 0.0)).cubic(
        (0.2, 0.78),
        (-0.7, 0.78),
        (-1.0, 0.02),
    );
    sketch.body(body.close(), tones.main);
    for x in [-0.06, 0.26] {
        let height = 0.42 - 0.3 * x;
        let stripe = Pen::at(x, -height).quad(x + 0.22, 0.0, x, height).line(x + 0.12, height * 0.92).quad(
            x + 0.34,
            0.0,
            x + 0.12,
            -height * 0.92,
        );
        sketch.tone(stripe.close(), tones.light);
    }
    sketch.part(Pen::circle(-0.52, -0.12, 0.15), WHITE);
    sketch.patch(Pen::circle(-0.55, -0.12, 0.08), OUTLINE);
    sketch.outline(Pen::at(-0.92, 0.18).quad(-0.74, 0.28, -0.6, 0.2));
}

pub(super) fn cat(sketch: &mut Sketch, tones: Tones) {
    for side in [-1.0, 1.0] {
        let ear = Pen::polygon(&[(side * 0.86, 0.0), (side * 0.84, -0.98), (side * 0.16, -0.52)]);
        sketch.body(ear, tones.main);
        let inner = Pen::polygon(&[(side * 0.74, -0.34), (side * 0.73, -0.74), (side * 0.4, -0.52)]);
        sketch.tone(inner, tones.dark);
    }
    sketch.body(Pen::oval(0.0, 0.14, 0.94, 0.74), tones.main);
    sketch.tone(Pen::oval(0.0, 0.5, 0.4, 0.28), tones.light);
    for side in [-1.0, 1.0] {
        sketch.part(Pen::oval(side * 0.4, 0.02, 0.18, 0.22), WHITE);
        sketch.patch(Pen::oval(side * 0.38, 0.04, 0.09, 0.16), OUTLINE);
        for drop in [0.02, 0.2] {
            sketch.outline(Pen::at(side * 0.5, 0.36 + drop * 0.5).line(side * 1.08, 0.26 + drop));
        }
    }
    sketch.part(Pen::polygon(&[(-0.12, 0.3), (0.12, 0.3), (0.0, 0.44)]), Rgb::new(240, 110, 130));
    sketch.outline(Pen::at(-0.22, 0.56).quad(-0.06, 0.68, 0.0, 0.46).quad(0.06, 0.68, 0.22, 0.56));
}
