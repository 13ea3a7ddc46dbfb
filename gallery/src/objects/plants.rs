//! Things that grow: the tree, the flower and the mushroom.

use std::f32::consts::TAU;

use super::{BROWN, CREAM, LEAF};
use crate::geometry::{Pen, polar};
use crate::palette::{Rgb, Tones};
use crate::scene::Sketch;
use crate::vocabulary::Colour;

pub(super) fn tree(sketch: &mut Sketch, tones: Tones) {
    let trunk = Pen::at(-0.17, 0.2).line(-0.24, 0.98).line(0.24, 0.98).line(0.17, 0.2).close();
    sketch.part(trunk, BROWN);
    let crown = [(0.0, -0.52, 0.5), (-0.46, -0.12, 0.42), (0.46, -0.12, 0.42), (0.0, 0.0, 0.44)];
    sketch.merged(&crown.map(|(x, y, radius)| Pen::circle(x, y, radius)), tones.main);
    sketch.tone(Pen::oval(0.18, 0.16, 0.46, 0.16), tones.dark);
    sketch.tone(Pen::circle(-0.14, -0.6, 0.2), tones.light);
    sketch.tone(Pen::circle(-0.5, -0.2, 0.13), tones.light);
}

pub(super) fn flower(sketch: &mut Sketch, tones: Tones) {
    sketch.rod(Pen::at(0.0, 0.0).quad(0.06, 0.5, 0.0, 1.0), 9.0, LEAF, false);
    sketch.part(Pen::at(0.04, 0.86).quad(0.2, 0.42, 0.72, 0.5).quad(0.56, 0.9, 0.04, 0.86).close(), LEAF);
    let petals: Vec<Pen> = (0..6)
        .map(|petal| {
            let (x, y) = polar((0.0, -0.34), 0.42, TAU * (petal as f32 / 6.0 + 0.25));
            Pen::circle(x, y, 0.26)
        })
        .collect();
    for petal in petals {
        sketch.body(petal, tones.main);
    }
    for petal in 0..6 {
        let (x, y) = polar((0.0, -0.34), 0.36, TAU * (petal as f32 / 6.0 + 0.25));
        sketch.tone(Pen::circle(x, y, 0.14), tones.dark);
    }
    sketch.part(Pen::circle(0.0, -0.34, 0.22), Rgb::new(255, 200, 60).mix(BROWN, 0.6));
}

pub(super) fn mushroom(sketch: &mut Sketch, tones: Tones, colour: Colour) {
    let stem = Pen::at(-0.26, 0.0).quad(-0.24, 0.5, -0.4, 0.94).line(0.4, 0.94).quad(0.24, 0.5, 0.26, 0.0).close();
    sketch.part(stem, CREAM);
    sketch.patch(Pen::polygon(&[(-0.24, 0.16), (0.24, 0.16), (0.25, 0.3), (-0.25, 0.3)]), Rgb::new(206, 186, 150));
    let cap = Pen::at(-1.0, 0.12)
        .cubic((-1.0, -0.6), (-0.56, -0.96), (0.0, -0.96))
        .cubic((0.56, -0.96), (1.0, -0.6), (1.0, 0.12))
        .quad(0.0, 0.3, -1.0, 0.12)
        .close();
    sketch.body(cap, tones.main);
    let spots = if colour == Colour::White { tones.dark } else { Rgb::new(255, 252, 244) };
    for (x, y, radius) in [(-0.5, -0.18, 0.19), (0.06, -0.56, 0.22), (0.54, -0.14, 0.18)] {
        sketch.patch(Pen::circle(x, y, radius), spots);
    }
}
