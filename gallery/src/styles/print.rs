//! Printing: poster, two-ink risograph and comic halftone.

use super::field::Dots;
use super::view::{Spot, View};
use crate::palette::{Rgb, WHITE};
use crate::render::Image;
use crate::scene::{Role, Scene, Shape};
use crate::vocabulary::{Colour, Setting};

const CREAM: Rgb = Rgb::new(246, 230, 198);
const NAVY: Rgb = Rgb::new(40, 46, 80);
const TEAL: Rgb = Rgb::new(34, 148, 146);
const CORAL: Rgb = Rgb::new(240, 86, 66);
const MUSTARD: Rgb = Rgb::new(248, 186, 58);

/// Five flat colours, thick navy outlines and a cream edge around the object.
pub(super) fn poster(scene: &Scene) -> Image {
    let view = View::thickened(scene, 6.0);
    let distance = view.distance();
    let (sky, ground) = match scene.triple.setting {
        Setting::Field => (CREAM, TEAL),
        Setting::Sea => (MUSTARD, TEAL),
        Setting::Night => (NAVY, TEAL),
        Setting::Snow => (TEAL, CREAM),
        Setting::Wall => (MUSTARD, CORAL),
    };
    view.paint(|spot| match spot.shape.role {
        Role::Outline => NAVY,
        Role::Object { main: true } => flat(scene.triple.colour),
        Role::Object { main: false } if spot.shape.colour.luma() > 150.0 => CREAM,
        Role::Object { main: false } if spot.darkness() > 0.8 => NAVY,
        Role::Object { main: false } if flat(scene.triple.colour) == MUSTARD => CORAL,
        Role::Object { main: false } => MUSTARD,
        _ if distance.at(spot.x, spot.y) < 8.0 => CREAM,
        Role::Sky => sky,
        Role::Ground => ground,
        Role::Detail if spot.shape.colour.luma() > 120.0 => CREAM,
        Role::Detail => NAVY,
    })
}

fn flat(colour: Colour) -> Rgb {
    match colour {
        Colour::Red | Colour::Pink | Colour::Purple => CORAL,
        Colour::Orange | Colour::Yellow => MUSTARD,
        Colour::Green | Colour::Blue => TEAL,
        Colour::White => CREAM,
    }
}

/// Two plates, pink and teal, the second out of register: the object solid on bare paper, the setting screened.
pub(super) fn riso(scene: &Scene) -> Image {
    let view = View::thickened(scene, 4.0);
    let distance = view.distance();
    let paper = Rgb::new(250, 246, 234);
    let (pink, teal) = (Rgb::new(255, 140, 184), Rgb::new(104, 178, 194));
    let (pink_screen, teal_screen) = (Dots::new(15.0, 36.0), Dots::new(60.0, 36.0));
    let plates = |x: i32, y: i32| match distance.at(x, y) {
        gap if gap > 0.0 && gap < 9.0 => (0.0, 0.0),
        _ => plates(view.shape(x, y), scene.triple.setting),
    };
    view.paint(|spot| {
        let mut colour = paper;
        if printed(pink_screen, spot.point(), plates(spot.x, spot.y).0) {
            colour = pink.over(colour);
        }
        if printed(teal_screen, spot.point(), plates(spot.x - 4, spot.y + 3).1) {
            colour = teal.over(colour);
        }
        colour
    })
}

/// Amounts of pink and teal ink of a shape, each 0 to 1.
fn plates(shape: &Shape, setting: Setting) -> (f32, f32) {
    let [red, green, blue] = shape.colour.0.map(|channel| f32::from(channel) / 255.0);
    match (shape.role, setting) {
        (Role::Outline, _) => (0.0, 1.0),
        (Role::Object { .. }, _) => (solid((1.0 - green) * (0.3 + red.max(0.8 * blue)), 0.3), solid(1.0 - red, 0.35)),
        (Role::Sky, Setting::Night) => (0.0, 0.72),
        (Role::Ground, Setting::Night) => (0.3, 1.0),
        (Role::Sky, Setting::Snow) => (0.0, 0.3),
        (Role::Sky, Setting::Wall) => (0.4, 0.0),
        (Role::Ground, Setting::Wall) => (1.0, 0.0),
        (Role::Sky, _) => (0.2, 0.0),
        (Role::Ground, Setting::Snow) => (0.0, 0.0),
        (Role::Ground, Setting::Sea) => (0.0, 1.0),
        (Role::Ground, Setting::Field) => (0.0, 0.4),
        (Role::Detail, _) => (0.0, if shape.colour.luma() > 180.0 { 0.0 } else { 1.0 }),
    }
}

/// 1 if `amount` is above `least`, otherwise 0.
fn solid(amount: f32, least: f32) -> f32 {
    if amount > least { 1.0 } else { 0.0 }
}

/// Whether a screen prints at a point: strong tones are solid, faint ones bare.
fn printed(screen: Dots, point: (f32, f32), amount: f32) -> bool {
    amount > 0.7 || (amount > 0.08 && screen.covers(point, amount))
}

/// Thick black lines, pure colours, rays in the sky and big dots on the ground.
pub(super) fn comic(scene: &Scene) -> Image {
    let view = View::thickened(scene, 6.0);
    let distance = view.distance();
    let dots = Dots::new(45.0, 36.0);
    let line = Rgb::new(42, 34, 52);
    let glare = if view.is_night() { Rgb::new(92, 66, 180) } else { Rgb::new(255, 240, 120) };
    view.paint(|spot| {
        let colour = spot.shape.colour.saturated(1.5);
        match spot.shape.role {
            Role::Outline => line,
            Role::Object { .. } => colour,
            _ if distance.at(spot.x, spot.y) < 7.0 => WHITE,
            Role::Detail if spot.darkness() < 0.4 => WHITE,
            Role::Detail => line,
            Role::Sky if ray(scene, spot) => colour.mix(glare, 0.6),
            Role::Ground if dots.covers(spot.point(), 0.36) => colour.mix(WHITE, 0.35),
            Role::Sky | Role::Ground => colour,
        }
    })
}

/// Whether the spot lies on one of the eight rays that leave the object.
fn ray(scene: &Scene, spot: Spot<'_>) -> bool {
    let (x, y) = spot.point();
    let angle = libm::atan2f(y - scene.centre.1, x - scene.centre.0);
    (angle * 8.0 / std::f32::consts::TAU).rem_euclid(1.0) < 0.5
}
