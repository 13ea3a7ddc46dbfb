//! Paint: pointillism, watercolour, pastel and tie-dye.

use std::f32::consts::PI;

use super::field::{Cloud, Field, Ruling};
use super::view::{BLEED, View, WIDTH};
use crate::geometry::{Pen, Point};
use crate::palette::{BLACK, Rgb, Tones, WHITE};
use crate::render::{Canvas, Image};
use crate::rng::Rng;
use crate::scene::{Role, SIDE, Scene};

/// Dabs of pure colour on a loose hexagonal grid, smaller and closer on the object.
pub(super) fn dots(scene: &Scene) -> Image {
    let view = View::of(scene);
    let mut rng = Rng::new(scene.seed, "dots");
    let night = view.is_night();
    let ground = if night { Rgb::new(22, 26, 66) } else { Rgb::new(240, 238, 236) };
    let edge = Tones::of(scene.triple.colour).dark.mix(BLACK, 0.45);
    let mut canvas = Canvas::new(ground);
    for (pitch, on_object) in [(24.0, false), (12.0, true)] {
        for (x, y) in loose_grid(pitch, &mut rng) {
            let shape = view.shape(x as i32, y as i32);
            let colour = match shape.role {
                role if role.is_object() != on_object => continue,
                Role::Outline => edge,
                Role::Object { .. } => shape.colour.saturated(1.3),
                _ if night && shape.role != Role::Detail => shape.colour.saturated(1.2).mix(ground, 0.3),
                _ => shape.colour.saturated(1.7).mix(WHITE, 0.15),
            };
            dab(&mut canvas, (x, y), pitch * rng.between(0.48, 0.54), wavering(colour, &mut rng));
        }
    }
    canvas.into_image().bled(BLEED)
}

/// The points of a hexagonal grid, each a little off its place.
fn loose_grid(pitch: f32, rng: &mut Rng) -> Vec<Point> {
    let (columns, rows) = ((SIDE / pitch) as usize + 2, (SIDE / pitch / 0.86) as usize + 2);
    (0..columns * rows)
        .map(|place| {
            let (column, row) = ((place % columns) as f32, (place / columns) as f32);
            let x = (column + 0.5 * (row % 2.0)) * pitch;
            (x + rng.jitter(pitch * 0.12), row * pitch * 0.86 + rng.jitter(pitch * 0.12))
        })
        .collect()
}

fn wavering(colour: Rgb, rng: &mut Rng) -> Rgb {
    Rgb(colour.0.map(|channel| (f32::from(channel) + rng.jitter(16.0)).clamp(0.0, 255.0) as u8))
}

fn dab(canvas: &mut Canvas, (x, y): Point, radius: f32, colour: Rgb) {
    if let Some(path) = Pen::circle(x, y, radius).finish() {
        canvas.fill(&path, colour);
    }
}

/// The three channels of a scene as fields, each smoothed.
fn blurred(colour: impl Fn(i32, i32) -> Rgb, reach: i32) -> [Field; 3] {
    std::array::from_fn(|channel| Field::from_fn(|x, y| f32::from(colour(x, y).0[channel])).blurred(reach))
}

fn read(channels: &[Field; 3], x: i32, y: i32) -> Rgb {
    Rgb(std::array::from_fn(|channel| channels[channel].at(x, y).clamp(0.0, 255.0) as u8))
}

/// Watercolour: soft edges, pigment that pools, paper grain and an unpainted border.
pub(super) fn wash(scene: &Scene) -> Image {
    let view = View::of(scene);
    let mut rng = Rng::new(scene.seed, "wash");
    let (edge, pool, grain) = (Cloud::new(&mut rng, 16.0), Cloud::new(&mut rng, 40.0), Cloud::new(&mut rng, 6.0));
    let soft = blurred(
        |x, y| {
            let bend = (6.0 * edge.at(x as f32, y as f32)) as i32;
            view.colour(x + bend, y + bend)
        },
        3,
    );
    let night = view.is_night();
    let paper = Rgb::new(252, 248, 238);
    view.paint(|spot| {
        let (x, y) = spot.point();
        let margin = x.min(y).min(SIDE - x).min(SIDE - y) + 8.0 * edge.at(x, y);
        if margin < 22.0 {
            return paper.shifted(4.0 * grain.at(x, y));
        }
        let load = if spot.shape.role.is_object() {
            0.9
        } else if night {
            0.6
        } else {
            0.76
        };
        let rim = if margin < 27.0 { 0.2 } else { 0.0 };
        let strength = load + 0.14 * pool.at(x, y) + 0.08 * grain.at(x, y) + rim;
        paper.mix(read(&soft, spot.x, spot.y), strength.clamp(0.0, 1.0))
    })
}

/// Pastel: blurred light colours, slanted chalk grain, fog that thickens upwards.
pub(super) fn pastel(scene: &Scene) -> Image {
    let view = View::of(scene);
    let soft = blurred(|x, y| view.colour(x, y), 6);
    let chalk = Ruling::new(-60.0, 20.0);
    let night = view.is_night();
    let fog = if night { Rgb::new(200, 186, 232) } else { Rgb::new(250, 236, 246) };
    view.paint(|spot| {
        let (x, y) = spot.point();
        let stroke = 0.12 * libm::sinf(2.0 * PI * chalk.phase((x, y)));
        let height = 0.2 * (1.0 - y / SIDE);
        let veil = if spot.shape.role.is_object() {
            0.1
        } else if night {
            0.6
        } else {
            0.4
        };
        read(&soft, spot.x, spot.y).mix(fog, (veil + height + stroke).clamp(0.0, 1.0))
    })
}

/// Tie-dye: rippled edges and rings of three dyes around the middle.
pub(super) fn tiedye(scene: &Scene) -> Image {
    let view = View::of(scene);
    let wobble = Cloud::new(&mut Rng::new(scene.seed, "tiedye"), 30.0);
    let body = Tones::of(scene.triple.colour);
    Image::from_fn(WIDTH, |x, y| {
        let (dx, dy) = (x as f32 - scene.centre.0, y as f32 - scene.centre.1);
        let radius = libm::hypotf(dx, dy).max(1.0) + 7.0 * wobble.at(x as f32, y as f32);
        let ripple = 3.5 * libm::sinf(radius / 5.0) / radius;
        let shape = view.shape(x as i32 + (dx * ripple) as i32, y as i32 + (dy * ripple) as i32);
        match shape.role {
            Role::Outline => Rgb::new(82, 44, 104),
            Role::Object { .. } => shape.colour,
            _ => {
                let base = scene.shapes[usize::from(y as f32 > scene.horizon)].colour.saturated(2.2);
                let dyes = [base, base.mix(WHITE, 0.65), body.light.mix(Rgb::new(255, 120, 200), 0.4)];
                let place = radius / 20.0;
                let share = place.rem_euclid(1.0);
                let dye = place as usize;
                dyes[dye % 3].mix(dyes[(dye + 1) % 3], (share * 1.6 - 0.3).clamp(0.0, 1.0))
            }
        }
    })
    .bled(BLEED)
}
