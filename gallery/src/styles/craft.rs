//! Handicraft: cut paper, embroidery and mosaic.

use std::f32::consts::PI;

use tiny_skia::{Path, Transform};

use super::field::{Cloud, Ruling};
use super::view::{BLEED, Spot, View, WIDTH};
use crate::palette::{BLACK, Rgb, WHITE};
use crate::render::{Canvas, Image};
use crate::rng::Rng;
use crate::scene::{Ink, Role, Scene, Shape};

/// Cut paper: every part a sheet with a shadow, the object mounted on white.
pub(super) fn papercut(scene: &Scene) -> Image {
    let mut canvas = Canvas::new(WHITE);
    let (setting, object): (Vec<&Shape>, Vec<&Shape>) = scene.shapes.iter().partition(|shape| !shape.role.is_object());
    for (place, shape) in setting.into_iter().enumerate() {
        if place > 0 && shape.role != Role::Sky {
            shadow(&mut canvas, shape, 0.0);
        }
        canvas.shape(shape, shape.colour.saturated(1.15).mix(WHITE, 0.1));
    }
    let parts: Vec<&Shape> = object.into_iter().filter(|shape| shape.role != Role::Outline).collect();
    for shape in &parts {
        shadow(&mut canvas, shape, 18.0);
    }
    for shape in &parts {
        mount(&mut canvas, shape, 18.0);
    }
    for shape in parts {
        shadow(&mut canvas, shape, 0.0);
        canvas.shape(shape, shape.colour.mix(WHITE, 0.08));
    }
    canvas.into_image()
}

fn moved(path: &Path, x: f32, y: f32) -> Option<Path> {
    path.clone().transform(Transform::from_translate(x, y))
}

/// A soft shadow to the lower right, cast by a shape widened by `rim` canvas units.
fn shadow(canvas: &mut Canvas, shape: &Shape, rim: f32) {
    for (reach, opacity) in [(9.0, 0.10), (6.0, 0.16), (3.0, 0.2)] {
        let Some(path) = moved(&shape.path, reach * 0.7, reach) else { continue };
        match shape.ink {
            Ink::Fill => canvas.glaze(&path, BLACK, opacity),
            Ink::Stroke { width } => canvas.glaze_line(&path, width, BLACK, opacity),
        }
        if rim > 0.0 {
            canvas.glaze_line(&path, rim, BLACK, opacity * 0.5);
        }
    }
}

fn mount(canvas: &mut Canvas, shape: &Shape, rim: f32) {
    let width = rim + if let Ink::Stroke { width } = shape.ink { width } else { 0.0 };
    canvas.stroke(&shape.path, width, WHITE);
}

/// Embroidery: every region filled with stitches in its own direction.
pub(super) fn embroidery(scene: &Scene) -> Image {
    let view = View::thickened(scene, 2.0);
    let mut rng = Rng::new(scene.seed, "embroidery");
    let sheen = Cloud::new(&mut rng, 14.0);
    view.paint(|spot| {
        let colour = spot.shape.colour.saturated(1.2);
        match spot.shape.role {
            Role::Sky => linen(spot, colour),
            Role::Outline => stitched(spot, Rgb::new(66, 50, 72), 20.0, &sheen),
            Role::Ground => stitched(spot, colour, 90.0, &sheen),
            Role::Detail => colour,
            Role::Object { .. } => {
                stitched(spot, colour, [-40.0, 35.0, -15.0][view.number(spot.x, spot.y) % 3], &sheen)
            }
        }
    })
}

/// Dyed cloth with a coarse over-and-under weave.
fn linen(spot: Spot<'_>, dye: Rgb) -> Rgb {
    let (x, y) = spot.point();
    let over = ((x / 12.0) as i32 + (y / 12.0) as i32) % 2 == 0;
    dye.mix(Rgb::new(214, 196, 168), 0.3).shifted(if over { 9.0 } else { -9.0 })
}

/// One stitch: light along its middle, dark at its sides and ends.
fn stitched(spot: Spot<'_>, thread: Rgb, degrees: f32, sheen: &Cloud) -> Rgb {
    let rows = Ruling::new(degrees, 16.0);
    let (x, y) = spot.point();
    let row = libm::floorf(rows.place((x, y)));
    let along = (rows.along((x, y)) / 34.0 + row * 0.41).rem_euclid(1.0);
    let round = libm::sinf(PI * rows.phase((x, y)));
    let end = if along < 0.1 { -40.0 } else { 0.0 };
    thread.shifted(-44.0 + 78.0 * round + end + 14.0 * sheen.at(x, y))
}

/// Mosaic: square stones of one colour each, a little uneven, in pale mortar.
pub(super) fn mosaic(scene: &Scene) -> Image {
    const STONE: usize = 12;
    let house = scene.render();
    let mut rng = Rng::new(scene.seed, "mosaic");
    let across = WIDTH / STONE + 1;
    let stones: Vec<Rgb> = (0..across * across)
        .map(|place| {
            let (left, top) = (place % across * STONE, place / across * STONE);
            let colour = house.mean(left..left + STONE, top..top + STONE);
            colour.saturated(1.3).shifted(rng.jitter(14.0))
        })
        .collect();
    Image::from_fn(WIDTH, |x, y| {
        let mortar = x % STONE >= STONE - 3 || y % STONE >= STONE - 3;
        let stone = stones[(y / STONE) * across + x / STONE];
        if mortar { Rgb::new(206, 198, 184).mix(stone, 0.6) } else { stone }
    })
    .bled(BLEED)
}
