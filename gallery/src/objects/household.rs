//! Things on a shelf: the star, the mug and the umbrella.

use super::BROWN;
use crate::geometry::{Pen, star_corners};
use crate::palette::{Rgb, Tones, WHITE};
use crate::scene::Sketch;

pub(super) fn star(sketch: &mut Sketch, tones: Tones) {
    let corners = star_corners(5, 1.08, 0.48);
    sketch.body(Pen::polygon(&corners), tones.main);
    for point in 0..5 {
        let (tip, inner) = (corners[2 * point], corners[2 * point + 1]);
        sketch.tone(Pen::polygon(&[(0.0, 0.0), tip, inner]), tones.dark);
    }
    sketch.outline(Pen::polygon(&corners));
}

pub(super) fn mug(sketch: &mut Sketch, tones: Tones) {
    sketch.rod(Pen::at(0.5, -0.2).cubic((1.16, -0.3), (1.16, 0.62), (0.5, 0.52)), 14.0, tones.main, true);
    let cup = Pen::at(-0.8, -0.46)
        .line(-0.72, 0.74)
        .quad(-0.7, 0.94, -0.5, 0.94)
        .line(0.36, 0.94)
        .quad(0.56, 0.94, 0.58, 0.74)
        .line(0.66, -0.46);
    sketch.body(cup.close(), tones.main);
    sketch.tone(Pen::rectangle(0.26, -0.2, 0.44, 0.8), tones.dark);
    sketch.tone(Pen::rectangle(-0.6, -0.2, -0.42, 0.74), tones.light);
    sketch.body(Pen::oval(-0.07, -0.46, 0.73, 0.2), tones.light);
    sketch.part(Pen::oval(-0.07, -0.44, 0.54, 0.11), BROWN);
    for x in [-0.34, 0.16] {
        let steam = Pen::at(x, -0.7).quad(x - 0.16, -0.82, x, -0.94).quad(x + 0.14, -1.04, x + 0.02, -1.16);
        sketch.rod(steam, 4.0, WHITE, false);
    }
}

pub(super) fn umbrella(sketch: &mut Sketch, tones: Tones) {
    let handle = Pen::at(0.0, -0.1).line(0.0, 0.76).cubic((0.0, 1.06), (0.42, 1.06), (0.42, 0.74));
    sketch.rod(handle, 6.0, Rgb::new(206, 152, 92), false);
    sketch.rod(Pen::at(0.0, -1.08).line(0.0, -0.86), 4.0, BROWN, false);
    let top = (0.0, -0.9);
    sketch.body(canopy(-1.06, 1.06, &[-0.53, 0.0, 0.53]), tones.main);
    for (left, right) in [(-0.53, 0.0), (0.53, 1.06)] {
        let middle = 0.5 * (left + right);
        let panel = Pen::at(top.0, top.1).quad(left * 1.16, -0.66, left, 0.06).quad(middle, -0.16, right, 0.06).quad(
            right * 1.1,
            -0.66,
            top.0,
            top.1,
        );
        sketch.tone(panel.close(), tones.dark);
    }
    sketch.outline(canopy(-1.06, 1.06, &[-0.53, 0.0, 0.53]));
}

/// A dome from `left` to `right` whose lower edge sags between the ribs.
fn canopy(left: f32, right: f32, ribs: &[f32]) -> Pen {
    let mut pen = Pen::at(left, 0.06).cubic((left, -0.56), (left * 0.5, -0.9), (0.0, -0.9)).cubic(
        (right * 0.5, -0.9),
        (right, -0.56),
        (right, 0.06),
    );
    let mut from = right;
    for &rib in ribs.iter().rev().chain([&left]) {
        pen = pen.quad(0.5 * (from + rib), -0.16, rib, 0.06);
        from = rib;
    }
    pen.close()
}
