//! The five settings: two flat fields of colour and a few details each.

use crate::geometry::{Pen, Point};
use crate::palette::Rgb;
use crate::rng::Rng;
use crate::scene::{Ink, Role, SIDE, Shape};
use crate::vocabulary::Setting;

/// The shapes of a setting, the farthest first, and the height of its horizon.
pub(crate) fn draw(setting: Setting, rng: &mut Rng) -> (Vec<Shape>, f32) {
    let mut stage = Stage { shapes: Vec::new(), horizon: SIDE * horizon_of(setting, rng) };
    match setting {
        Setting::Field => field(&mut stage, rng),
        Setting::Sea => sea(&mut stage, rng),
        Setting::Night => night(&mut stage, rng),
        Setting::Snow => snow(&mut stage, rng),
        Setting::Wall => wall(&mut stage),
    }
    (stage.shapes, stage.horizon)
}

fn horizon_of(setting: Setting, rng: &mut Rng) -> f32 {
    let usual = match setting {
        Setting::Sea => 0.56,
        Setting::Wall => 0.8,
        Setting::Field | Setting::Night | Setting::Snow => 0.64,
    };
    usual + rng.jitter(0.03)
}

struct Stage {
    shapes: Vec<Shape>,
    horizon: f32,
}

impl Stage {
    fn push(&mut self, pen: Pen, ink: Ink, colour: Rgb, role: Role) {
        self.shapes.extend(pen.finish().map(|path| Shape { path, ink, colour, role }));
    }

    fn backdrop(&mut self, sky: Rgb, ground: Rgb) {
        self.push(Pen::rectangle(0.0, 0.0, SIDE, SIDE), Ink::Fill, sky, Role::Sky);
        self.push(Pen::rectangle(0.0, self.horizon, SIDE, SIDE), Ink::Fill, ground, Role::Ground);
    }

    fn patch(&mut self, pen: Pen, colour: Rgb) {
        self.push(pen, Ink::Fill, colour, Role::Detail);
    }

    fn line(&mut self, pen: Pen, width: f32, colour: Rgb) {
        self.push(pen, Ink::Stroke { width }, colour, Role::Detail);
    }

    /// A spot on the ground, `depth` (0 to 1) of the way from the horizon to the bottom edge.
    fn on_ground(&self, across: f32, depth: f32) -> Point {
        (SIDE * across, self.horizon + (SIDE - self.horizon) * depth)
    }
}

fn field(stage: &mut Stage, rng: &mut Rng) {
    stage.backdrop(Rgb::new(158, 214, 246), Rgb::new(156, 208, 104));
    let (x, y) = (SIDE * rng.between(0.12, 0.88), SIDE * rng.between(0.1, 0.16));
    for (dx, radius) in [(-17.0, 9.0), (0.0, 13.0), (17.0, 9.0)] {
        stage.patch(Pen::circle(x + dx, y, radius), Rgb::new(242, 250, 255));
    }
    for place in 0..6 {
        let across = (place as f32 + 0.5) / 6.0 + rng.jitter(0.04);
        let (x, y) = stage.on_ground(across, rng.between(0.25, 0.85));
        let tuft = [(x - 6.0, y - 9.0), (x, y), (x + 6.0, y - 9.0)];
        stage.line(Pen::polyline(&tuft), 4.0, Rgb::new(104, 166, 66));
    }
}

fn sea(stage: &mut Stage, rng: &mut Rng) {
    stage.backdrop(Rgb::new(206, 236, 250), Rgb::new(66, 178, 196));
    for place in 0..6 {
        let across = [0.16, 0.5, 0.84][place % 3] + rng.jitter(0.06);
        let depth = if place < 3 { 0.28 } else { 0.76 };
        let (x, y) = stage.on_ground(across, depth + rng.jitter(0.08));
        let wave = Pen::at(x - 18.0, y).quad(x - 9.0, y - 10.0, x, y).quad(x + 9.0, y - 10.0, x + 18.0, y);
        stage.line(wave, 4.5, Rgb::new(196, 240, 244));
    }
}

fn night(stage: &mut Stage, rng: &mut Rng) {
    let sky = Rgb::new(38, 44, 96);
    stage.backdrop(sky, Rgb::new(34, 66, 74));
    let (x, y) = (SIDE * if rng.chance(0.5) { 0.14 } else { 0.86 }, SIDE * rng.between(0.12, 0.17));
    stage.patch(Pen::circle(x, y, 17.0), Rgb::new(255, 244, 200));
    stage.push(Pen::circle(x + 8.0, y - 4.0, 14.0), Ink::Fill, sky, Role::Sky);
    for place in 0..8 {
        let across = (place as f32 + 0.5) / 8.0 + rng.jitter(0.04);
        let up = SIDE * rng.between(0.05, 0.5);
        stage.patch(Pen::circle(SIDE * across, up, 3.4), Rgb::new(240, 240, 220));
    }
}

fn snow(stage: &mut Stage, rng: &mut Rng) {
    stage.backdrop(Rgb::new(160, 178, 206), Rgb::new(230, 238, 248));
    for place in 0..12 {
        let across = (place as f32 + 0.5) / 12.0 + rng.jitter(0.03);
        let up = SIDE * rng.between(0.04, 0.58);
        stage.patch(Pen::circle(SIDE * across, up, 5.0), Rgb::new(250, 252, 255));
    }
}

fn wall(stage: &mut Stage) {
    stage.backdrop(Rgb::new(226, 204, 172), Rgb::new(150, 104, 74));
    let edge = stage.horizon;
    stage.patch(Pen::rectangle(0.0, edge, SIDE, edge + 9.0), Rgb::new(112, 74, 52));
}
