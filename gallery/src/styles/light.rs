//! Light: neon tubes and gold leaf.

use super::field::{Field, Ruling};
use super::view::View;
use crate::palette::{Rgb, Tones, WHITE};
use crate::render::Image;
use crate::scene::{Role, SIDE, Scene};
use crate::vocabulary::{Colour, Setting};

/// Neon: the object's outlines as a glowing tube, the setting as dim coloured lines.
pub(super) fn neon(scene: &Scene) -> Image {
    let view = View::thickened(scene, 1.0);
    let tube = Field::from_fn(|x, y| if view.role(x, y) == Role::Outline { 1.0 } else { 0.0 });
    let (near, far) = (tube.blurred(4), tube.blurred(12));
    let colour = lit(scene.triple.colour);
    let wall = Rgb::new(14, 10, 32);
    view.paint(|spot| {
        let glow = (0.55 * near.at(spot.x, spot.y) + 1.1 * far.at(spot.x, spot.y)).min(1.0);
        let base = match spot.shape.role {
            Role::Outline => return colour.mix(WHITE, 0.5 * near.at(spot.x, spot.y).min(1.0)),
            Role::Object { .. } => wall.mix(colour, 0.16),
            Role::Detail => wall.mix(dim(scene.triple.setting), 0.85),
            Role::Sky => wall,
            Role::Ground => ground_lines(scene, spot.point(), wall),
        };
        base.mix(colour, 0.8 * glow)
    })
}

/// The tube's colour: the caption's, as bright as light.
fn lit(colour: Colour) -> Rgb {
    match colour {
        Colour::Red => Rgb::new(255, 56, 66),
        Colour::Orange => Rgb::new(255, 146, 30),
        Colour::Yellow => Rgb::new(255, 238, 70),
        Colour::Green => Rgb::new(60, 255, 120),
        Colour::Blue => Rgb::new(70, 130, 255),
        Colour::Purple => Rgb::new(190, 90, 255),
        Colour::Pink => Rgb::new(255, 130, 210),
        Colour::White => Rgb::new(240, 248, 255),
    }
}

fn dim(setting: Setting) -> Rgb {
    match setting {
        Setting::Field => Rgb::new(70, 200, 60),
        Setting::Sea => Rgb::new(40, 190, 220),
        Setting::Night => Rgb::new(190, 180, 120),
        Setting::Snow => Rgb::new(190, 205, 230),
        Setting::Wall => Rgb::new(210, 120, 50),
    }
}

/// Level lines that spread towards the viewer.
fn ground_lines(scene: &Scene, (_, y): (f32, f32), wall: Rgb) -> Rgb {
    let depth = ((y - scene.horizon) / (SIDE - scene.horizon)).max(0.0);
    let lined = (libm::sqrtf(depth) * 4.0).rem_euclid(1.0) < 0.24;
    let colour = dim(scene.triple.setting);
    if lined { wall.mix(colour, 0.75) } else { wall.mix(colour, 0.14) }
}

/// Gold leaf: gold with a slanted sheen on dark red, and a gold rim around the object.
pub(super) fn goldleaf(scene: &Scene) -> Image {
    let view = View::thickened(scene, 3.0);
    let distance = view.distance();
    let (rising, falling, sheen) = (Ruling::new(45.0, 56.0), Ruling::new(-45.0, 56.0), Ruling::new(-55.0, 110.0));
    let (dark, bright, line) = (Rgb::new(150, 96, 24), Rgb::new(250, 218, 120), Rgb::new(104, 46, 26));
    let gold = |point, light: f32| {
        let wave = 0.14 * libm::sinf(std::f32::consts::TAU * sheen.phase(point));
        dark.mix(bright, (light + wave).clamp(0.0, 1.0))
    };
    let main = Tones::of(scene.triple.colour).main.luma();
    view.paint(|spot| {
        let point = spot.point();
        let lattice = rising.covers(point, 0.1) || falling.covers(point, 0.1);
        match spot.shape.role {
            Role::Outline => line,
            Role::Object { main: true } => gold(point, 0.66 + (spot.shape.colour.luma() - main) / 200.0),
            Role::Object { main: false } => gold(point, spot.shape.colour.luma() / 255.0),
            _ if (3.0..12.0).contains(&distance.at(spot.x, spot.y)) => gold(point, 0.6),
            Role::Detail => gold(point, 0.45),
            _ if (spot.y as f32 - scene.horizon).abs() < 3.0 => gold(point, 0.4),
            Role::Sky => Rgb::new(116, 20, 34).shifted(if lattice { 14.0 } else { 0.0 }),
            Role::Ground => Rgb::new(68, 10, 24),
        }
    })
}
