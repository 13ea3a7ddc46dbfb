//! Facets: stained glass and low polygons.

use super::view::{View, WIDTH};
use crate::geometry::{Pen, Point};
use crate::palette::{Rgb, WHITE};
use crate::render::{Canvas, Image};
use crate::rng::Rng;
use crate::scene::{Role, SIDE, Scene};

/// Stained glass: the setting broken into panes between leads, the object leaded along its outlines.
pub(super) fn stained(scene: &Scene) -> Image {
    let view = View::thickened(scene, 4.0);
    let mut rng = Rng::new(scene.seed, "glass");
    let panes = Panes::new(&mut rng, 4);
    let lead = Rgb::new(44, 40, 52);
    view.paint(|spot| {
        let point = spot.point();
        let (pane, margin) = panes.at(point);
        let glass = spot.shape.colour.saturated(1.5);
        let seam = (spot.y as f32 - scene.horizon).abs() < 3.5;
        match spot.shape.role {
            Role::Outline => lead,
            Role::Object { .. } => glass.shifted(pane.tint * 0.4),
            Role::Detail => glass.mix(WHITE, 0.2),
            Role::Sky | Role::Ground if margin < 8.0 || seam => lead,
            Role::Sky | Role::Ground => glass.shifted(pane.tint + (margin * 0.7).min(18.0)),
        }
    })
}

/// Cells around scattered seeds.
struct Panes(Vec<Pane>);

#[derive(Clone, Copy)]
struct Pane {
    seed: Point,
    tint: f32,
}

impl Panes {
    /// `across` by `across` cells, loosely placed.
    fn new(rng: &mut Rng, across: usize) -> Self {
        let cell = SIDE / across as f32;
        let pane = |place: usize, rng: &mut Rng| Pane {
            seed: (
                ((place % across) as f32 + 0.5 + rng.jitter(0.38)) * cell,
                ((place / across) as f32 + 0.5 + rng.jitter(0.38)) * cell,
            ),
            tint: rng.jitter(26.0),
        };
        Self((0..across * across).map(|place| pane(place, rng)).collect())
    }

    /// The pane that holds a point, and the point's approximate distance from the pane's edge.
    fn at(&self, (x, y): Point) -> (Pane, f32) {
        let reach = |pane: &Pane| libm::hypotf(pane.seed.0 - x, pane.seed.1 - y);
        let (mut nearest, mut first, mut second) = (self.0[0], f32::MAX, f32::MAX);
        for pane in &self.0 {
            let distance = reach(pane);
            if distance < first {
                (nearest, second, first) = (*pane, first, distance);
            } else {
                second = second.min(distance);
            }
        }
        (nearest, second - first)
    }
}

/// Low polygons: triangles of light and shade over flat colours, no outlines.
pub(super) fn lowpoly(scene: &Scene) -> Image {
    let view = View::without_outlines(scene);
    let shade = triangles(&mut Rng::new(scene.seed, "lowpoly"), 36.0);
    view.paint(|spot| {
        let light = f32::from(shade.at(spot.x as usize, spot.y as usize).0[0]) - 128.0;
        spot.shape.colour.shifted(light)
    })
}

/// Grey triangles on a loose grid of `cell` canvas units; 128 is neither light nor dark.
fn triangles(rng: &mut Rng, cell: f32) -> Image {
    let across = (WIDTH as f32 / cell) as usize + 3;
    let knots: Vec<Point> = (0..across * across)
        .map(|place| {
            let (x, y) = ((place % across) as f32 - 0.5, (place / across) as f32 - 0.5);
            ((x + rng.jitter(0.3)) * cell, (y + rng.jitter(0.3)) * cell)
        })
        .collect();
    let mut canvas = Canvas::new(Rgb::new(128, 128, 128));
    for place in (0..across * (across - 1)).filter(|place| place % across + 1 < across) {
        let [a, b, c, d] = [place, place + 1, place + across + 1, place + across].map(|knot| knots[knot]);
        let halves = if rng.chance(0.5) { [[a, b, c], [a, c, d]] } else { [[a, b, d], [b, c, d]] };
        for (corners, lean) in halves.into_iter().zip([14.0, -14.0]) {
            let grey = (128.0 + lean + rng.jitter(20.0)) as u8;
            if let Some(path) = Pen::polygon(&corners).finish() {
                canvas.fill(&path, Rgb::new(grey, grey, grey));
            }
        }
    }
    canvas.into_image()
}
