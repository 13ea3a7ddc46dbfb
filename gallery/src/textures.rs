//! Generic textures, images without a subject, for the autoencoder alone: its decoder learns to draw fine structure.
//!
//! Everything is painted at full canvas size and reduced like a scene. A pixel of a 64-pixel image is four canvas units
//! wide.

use std::f32::consts::{PI, TAU};

use tiny_skia::Transform;

use crate::geometry::{Pen, Point, polar};
use crate::palette::{BLACK, Rgb, WHITE};
use crate::render::{Canvas, Image};
use crate::rng::Rng;
use crate::scene::{CANVAS, SIDE};

/// One pixel of a 64-pixel image, in canvas units.
const PIXEL: f32 = SIDE / 64.0;

/// A random texture at full canvas size: the same seed gives the same bytes.
pub fn texture(seed: u64) -> Image {
    let mut rng = Rng::new(seed, "texture");
    let palette = palette(&mut rng);
    let mut canvas = Canvas::new(palette[0]);
    layer(&mut canvas, &palette, &mut rng);
    for _ in 0..rng.below(3) {
        layer(&mut canvas, &palette, &mut rng);
    }
    let image = canvas.into_image();
    match rng.below(4) {
        0 => grain(&image, &mut rng),
        1 => shade(&image, &mut rng),
        _ => image,
    }
}

fn layer(canvas: &mut Canvas, palette: &[Rgb], rng: &mut Rng) {
    let ink = |rng: &mut Rng| palette[1 + rng.below(palette.len() - 1)];
    match rng.below(10) {
        0 | 1 => lines(canvas, ink(rng), rng),
        2 => windows_of_lines(canvas, palette, rng),
        3 => checkers(canvas, ink(rng), rng),
        4 => dots(canvas, palette, rng),
        5 => scribbles(canvas, ink(rng), rng),
        6 => outlines(canvas, palette, rng),
        7 => shapes(canvas, palette, rng),
        8 => dashes(canvas, palette, rng),
        _ => mosaic(canvas, palette, rng),
    }
}

/// Two to six colours: contrasting, tonal or free; light or dark ground.
fn palette(rng: &mut Rng) -> Vec<Rgb> {
    let any = |rng: &mut Rng| Rgb::new(rng.below(256) as u8, rng.below(256) as u8, rng.below(256) as u8);
    let (one, two) = (any(rng), any(rng));
    let mut colours = match rng.below(4) {
        0 => vec![one.mix(WHITE, rng.between(0.6, 1.0)), two.mix(BLACK, rng.between(0.5, 1.0))],
        1 => vec![one.mix(BLACK, rng.between(0.6, 1.0)), two.mix(WHITE, rng.between(0.4, 1.0))],
        2 => vec![one, one.mix(WHITE, 0.35), one.mix(BLACK, 0.35)],
        _ => vec![one, two],
    };
    for _ in 0..rng.below(4) {
        colours.push(any(rng));
    }
    colours
}

/// A random distance between lines, from a little over one to six pixels; fine ones are more frequent.
fn pitch(rng: &mut Rng) -> f32 {
    let share = rng.unit();
    PIXEL * (1.5 + 5.0 * share * share)
}

fn lines(canvas: &mut Canvas, colour: Rgb, rng: &mut Rng) {
    let angle = rng.between(0.0, 180.0);
    ruled(canvas, (SIDE / 2.0, SIDE / 2.0), SIDE * 0.75, angle, colour, rng);
    if rng.chance(0.3) {
        ruled(canvas, (SIDE / 2.0, SIDE / 2.0), SIDE * 0.75, angle + rng.between(40.0, 140.0), colour, rng);
    }
}

/// Parallel lines, straight or wavy, in a square around `centre`.
fn ruled(canvas: &mut Canvas, centre: Point, reach: f32, angle: f32, colour: Rgb, rng: &mut Rng) {
    let step = pitch(rng);
    let width = step * rng.between(0.25, 0.6);
    let (wave, length) = (if rng.chance(0.4) { rng.between(2.0, 16.0) } else { 0.0 }, rng.between(30.0, 120.0));
    let turn = Transform::from_rotate(angle).post_translate(centre.0, centre.1);
    let mut y = -reach;
    while y < reach {
        let mut pen = Pen::at(-reach, y);
        let mut x = -reach;
        while x < reach && wave > 0.0 {
            pen = pen.quad(x + length * 0.25, y - wave, x + length * 0.5, y).quad(
                x + length * 0.75,
                y + wave,
                x + length,
                y,
            );
            x += length;
        }
        if let Some(path) = pen.line(reach, y).finish().and_then(|path| path.transform(turn)) {
            canvas.stroke(&path, width, colour);
        }
        y += step;
    }
}

fn windows_of_lines(canvas: &mut Canvas, palette: &[Rgb], rng: &mut Rng) {
    for _ in 0..3 + rng.below(5) {
        let centre = (rng.between(0.0, SIDE), rng.between(0.0, SIDE));
        let (reach, angle) = (rng.between(16.0, 60.0), rng.between(0.0, 180.0));
        let colour = palette[rng.below(palette.len())];
        ruled(canvas, centre, reach, angle, colour, rng);
    }
}

fn checkers(canvas: &mut Canvas, colour: Rgb, rng: &mut Rng) {
    let cell = PIXEL * [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0][rng.below(7)];
    let turn = Transform::from_rotate(if rng.chance(0.5) { 0.0 } else { rng.between(0.0, 90.0) });
    let turn = turn.post_translate(SIDE / 2.0, SIDE / 2.0);
    let cells = (SIDE * 0.75 / cell) as i32;
    for row in -cells..cells {
        for column in (-cells..cells).filter(|column| (column + row) % 2 == 0) {
            let (x, y) = (column as f32 * cell, row as f32 * cell);
            let square = Pen::rectangle(x, y, x + cell, y + cell).finish().and_then(|path| path.transform(turn));
            if let Some(square) = square {
                canvas.fill(&square, colour);
            }
        }
    }
}

fn fill(canvas: &mut Canvas, pen: Pen, colour: Rgb) {
    if let Some(path) = pen.finish() {
        canvas.fill(&path, colour);
    }
}

fn stroke(canvas: &mut Canvas, pen: Pen, width: f32, colour: Rgb) {
    if let Some(path) = pen.finish() {
        canvas.stroke(&path, width, colour);
    }
}

/// A screen of dots on a turned grid; sizes equal, drifting or random; one colour or many.
fn dots(canvas: &mut Canvas, palette: &[Rgb], rng: &mut Rng) {
    let step = pitch(rng) + PIXEL;
    let (angle, phase) = (rng.between(0.0, PI / 2.0), rng.between(0.0, TAU));
    let (motley, wild) = (rng.chance(0.5), rng.chance(0.3));
    let one = palette[1 + rng.below(palette.len() - 1)];
    let cells = (SIDE * 0.75 / step) as i32;
    for row in -cells..cells {
        for column in -cells..cells {
            let across = polar((SIDE / 2.0, SIDE / 2.0), column as f32 * step, angle);
            let (x, y) = polar(across, row as f32 * step, angle + PI / 2.0);
            let share = if wild { rng.unit() } else { 0.5 + 0.4 * libm::sinf(x * 0.02 + phase) };
            let colour = if motley { palette[rng.below(palette.len())] } else { one };
            fill(canvas, Pen::circle(x, y, step * (0.12 + 0.42 * share)), colour);
        }
    }
}

fn scribbles(canvas: &mut Canvas, colour: Rgb, rng: &mut Rng) {
    let width = rng.between(2.5, 9.0);
    for _ in 0..3 + rng.below(10) {
        let mut point = (rng.between(0.0, SIDE), rng.between(0.0, SIDE));
        let mut pen = Pen::at(point.0, point.1);
        for _ in 0..4 + rng.below(14) {
            let bend = (point.0 + rng.jitter(70.0), point.1 + rng.jitter(70.0));
            point = (point.0 + rng.jitter(70.0), point.1 + rng.jitter(70.0));
            pen = pen.quad(bend.0, bend.1, point.0, point.1);
        }
        stroke(canvas, pen, width, colour);
    }
}

/// A disc, an oval, a rectangle or a polygon somewhere on the canvas.
fn anything(rng: &mut Rng, largest: f32) -> Pen {
    let (x, y) = (rng.between(0.0, SIDE), rng.between(0.0, SIDE));
    let size = rng.between(6.0, largest);
    match rng.below(4) {
        0 => Pen::circle(x, y, size),
        1 => Pen::oval(x, y, size, size * rng.between(0.3, 1.0)),
        2 => Pen::rectangle(x - size, y - size * rng.between(0.2, 1.0), x + size, y + size * rng.between(0.2, 1.0)),
        _ => {
            let corners = 3 + rng.below(6);
            let turn = rng.between(0.0, TAU);
            let points: Vec<Point> = (0..corners)
                .map(|corner| polar((x, y), size * rng.between(0.4, 1.0), turn + TAU * corner as f32 / corners as f32))
                .collect();
            Pen::polygon(&points)
        }
    }
}

fn outlines(canvas: &mut Canvas, palette: &[Rgb], rng: &mut Rng) {
    let width = rng.between(2.5, 10.0);
    for _ in 0..5 + rng.below(16) {
        let colour = palette[rng.below(palette.len())];
        stroke(canvas, anything(rng, 80.0), width, colour);
    }
}

fn shapes(canvas: &mut Canvas, palette: &[Rgb], rng: &mut Rng) {
    let edged = rng.chance(0.4);
    let largest = if rng.chance(0.5) { 24.0 } else { 90.0 };
    for _ in 0..8 + rng.below(30) {
        let pen = anything(rng, largest);
        fill(canvas, pen.clone(), palette[rng.below(palette.len())]);
        if edged {
            stroke(canvas, pen, 4.0, palette[rng.below(palette.len())]);
        }
    }
}

/// Short strokes that share a direction.
fn dashes(canvas: &mut Canvas, palette: &[Rgb], rng: &mut Rng) {
    let (angle, spread) = (rng.between(0.0, PI), if rng.chance(0.5) { 0.2 } else { PI });
    let (length, width) = (rng.between(8.0, 40.0), rng.between(3.0, 12.0));
    for _ in 0..150 + rng.below(450) {
        let from = (rng.between(0.0, SIDE), rng.between(0.0, SIDE));
        let to = polar(from, length, angle + rng.jitter(spread));
        stroke(canvas, Pen::polyline(&[from, to]), width, palette[rng.below(palette.len())]);
    }
}

fn mosaic(canvas: &mut Canvas, palette: &[Rgb], rng: &mut Rng) {
    let cell = PIXEL * (2 + rng.below(5)) as f32;
    let joint = if rng.chance(0.5) { PIXEL * 0.7 } else { 0.0 };
    let cells = (SIDE / cell) as usize + 1;
    for place in 0..cells * cells {
        let (x, y) = ((place % cells) as f32 * cell, (place / cells) as f32 * cell);
        let colour = palette[rng.below(palette.len())].shifted(rng.jitter(16.0));
        fill(canvas, Pen::rectangle(x, y, x + cell - joint, y + cell - joint), colour);
    }
}

/// Paper grain: every small square is a little lighter or darker.
fn grain(image: &Image, rng: &mut Rng) -> Image {
    let (size, strength) = ([4, 4, 8, 12][rng.below(4)], rng.between(8.0, 60.0));
    let cells = CANVAS as usize / size + 1;
    let noise: Vec<f32> = (0..cells * cells).map(|_| rng.jitter(strength)).collect();
    Image::from_fn(image.side(), |x, y| image.at(x, y).shifted(noise[(y / size) * cells + x / size]))
}

/// A slow change of light across the image, straight or round.
fn shade(image: &Image, rng: &mut Rng) -> Image {
    let angle = rng.between(0.0, TAU);
    let (across, down) = (libm::cosf(angle), libm::sinf(angle));
    let strength = rng.between(30.0, 160.0);
    let round = rng.chance(0.4);
    let centre = (rng.between(0.2, 0.8), rng.between(0.2, 0.8));
    Image::from_fn(image.side(), |x, y| {
        let (x_share, y_share) = (x as f32 / SIDE, y as f32 / SIDE);
        let amount = if round {
            0.4 - libm::hypotf(x_share - centre.0, y_share - centre.1)
        } else {
            (x_share - 0.5) * across + (y_share - 0.5) * down
        };
        image.at(x, y).shifted(strength * amount)
    })
}
