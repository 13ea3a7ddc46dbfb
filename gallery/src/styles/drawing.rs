//! Drawing by hand: chalk and crayon.

use super::field::{Cloud, Ruling};
use super::view::View;
use crate::palette::{Rgb, WHITE};
use crate::render::Image;
use crate::rng::Rng;
use crate::scene::{Role, Scene};

/// Chalk on a board: broken white lines and slanted strokes of colour.
pub(super) fn chalk(scene: &Scene) -> Image {
    let view = View::thickened(scene, 2.0);
    let mut rng = Rng::new(scene.seed, "chalk");
    let (smudge, dust) = (Cloud::new(&mut rng, 60.0), Cloud::new(&mut rng, 5.0));
    let (fill, ground) = (Ruling::new(-50.0, 24.0), Ruling::new(0.0, 32.0));
    let board = Rgb::new(36, 50, 46);
    view.paint(|spot| {
        let (x, y) = spot.point();
        let slate = board.shifted(8.0 * smudge.at(x, y));
        let stick = spot.shape.colour.mix(WHITE, 0.22);
        let cover = match spot.shape.role {
            Role::Outline => return slate.mix(Rgb::new(244, 242, 232), 0.86 + 0.14 * dust.at(x, y)),
            Role::Object { .. } if fill.covers((x, y), 0.68) => 0.82,
            Role::Object { .. } => 0.45,
            Role::Detail => 0.7,
            Role::Ground if ground.covers((x, y + 6.0 * smudge.at(x, y)), 0.3) => 0.6,
            Role::Ground => 0.12,
            Role::Sky => 0.0,
        };
        slate.mix(stick, (cover * (1.0 + 0.3 * dust.at(x, y))).clamp(0.0, 1.0))
    })
}

/// Crayon: trembling edges, waxy strokes with paper between them.
pub(super) fn crayon(scene: &Scene) -> Image {
    let view = View::thickened(scene, 1.0);
    let mut rng = Rng::new(scene.seed, "crayon");
    let (tremble, wander) = (Cloud::new(&mut rng, 20.0), Cloud::new(&mut rng, 50.0));
    let paper = Rgb::new(255, 253, 244);
    let (sky, ground, body) = (Ruling::new(-28.0, 32.0), Ruling::new(6.0, 28.0), Ruling::new(-62.0, 26.0));
    view.paint(|spot| {
        let (x, y) = spot.point();
        let bend = (7.0 * tremble.at(x, y)) as i32;
        let shape = view.shape(spot.x + bend, spot.y - bend);
        let wax = shape.colour.saturated(1.35);
        let point = (x, y + 9.0 * wander.at(x, y));
        let covered = match shape.role {
            Role::Outline | Role::Detail => true,
            Role::Object { .. } => body.covers(point, 0.72),
            Role::Ground => ground.covers(point, 0.62),
            Role::Sky => sky.covers(point, 0.55),
        };
        if covered { wax } else { paper.mix(wax, 0.52) }
    })
}
