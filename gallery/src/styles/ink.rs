//! Ink: hatching, engraving, woodcut, brush and vase painting.

use super::field::{Cloud, Ruling};
use super::view::{Spot, View};
use crate::palette::Rgb;
use crate::render::Image;
use crate::rng::Rng;
use crate::scene::{Role, SIDE, Scene};
use crate::vocabulary::Setting;

/// Pen hatching: more directions where it is darker, and bare paper around the object; the paper is blue at night.
pub(super) fn hatch(scene: &Scene) -> Image {
    let view = View::thickened(scene, 4.0);
    let night = view.is_night();
    let paper = if night { Rgb::new(176, 178, 204) } else { Rgb::new(246, 236, 214) };
    let (bare, ink, line) = (Rgb::new(250, 242, 222), Rgb::new(136, 112, 106), Rgb::new(84, 66, 66));
    let distance = view.distance();
    let wobble = Cloud::new(&mut Rng::new(scene.seed, "hatch"), 40.0);
    let [level, rising, falling] = [0.0, -45.0, 45.0].map(|degrees| Ruling::new(degrees, 26.0));
    view.paint(|spot| {
        let (x, y) = spot.point();
        let bend = 5.0 * wobble.at(x, y);
        let point = (x + bend, y + bend);
        let darkness = spot.darkness();
        let (ground, inked) = match spot.shape.role {
            Role::Outline => return line,
            Role::Object { .. } if darkness > 0.5 => (bare, rising.covers(point, 0.3) || falling.covers(point, 0.3)),
            Role::Object { .. } => (bare, darkness > 0.2 && rising.covers(point, 0.3)),
            _ if distance.at(spot.x, spot.y) < 9.0 => (bare, false),
            Role::Detail => (bare, darkness > 0.3),
            Role::Sky => (paper, night && level.covers(point, 0.3)),
            Role::Ground => (paper, level.covers(point, 0.3)),
        };
        if inked { ink } else { ground }
    })
}

/// A line screen whose lines swell with darkness; the object's lines are tilted.
pub(super) fn engraving(scene: &Scene) -> Image {
    let view = View::thickened(scene, 3.0);
    let night = view.is_night();
    let (paper, ink, line) = (Rgb::new(238, 216, 174), Rgb::new(164, 122, 82), Rgb::new(116, 76, 46));
    let distance = view.distance();
    let (level, tilted) = (Ruling::new(0.0, 26.0), Ruling::new(-32.0, 24.0));
    view.paint(|spot| {
        let (x, y) = spot.point();
        let point = (x, y + 5.0 * libm::sinf(x / 26.0));
        let inked = match spot.shape.role {
            Role::Outline => return line,
            Role::Object { .. } => tilted.covers((x, y), swell(spot.darkness() * if night { 0.6 } else { 0.8 })),
            _ if distance.at(spot.x, spot.y) < 8.0 => false,
            Role::Detail => spot.darkness() > 0.4,
            Role::Sky => level.covers(point, if night { 0.62 } else { 0.22 }),
            Role::Ground => level.covers(point, if night { 0.75 } else { 0.42 }),
        };
        if inked { ink } else { paper }
    })
}

/// The share of the pitch that a line of some darkness covers; the lightest tones stay bare.
fn swell(darkness: f32) -> f32 {
    if darkness < 0.08 { 0.0 } else { (0.16 + 0.62 * darkness).min(0.7) }
}

/// A black block with the light carved out of it.
pub(super) fn woodcut(scene: &Scene) -> Image {
    let (paper, ink) = (Rgb::new(212, 204, 188), Rgb::new(60, 54, 62));
    let view = View::thickened(scene, 4.0);
    let distance = view.distance();
    let (sky, ground, body) = (Ruling::new(0.0, 44.0), Ruling::new(-20.0, 44.0), Ruling::new(-60.0, 40.0));
    let light = if view.is_night() { 0.14 } else { 0.34 };
    view.paint(|spot| {
        let (x, y) = spot.point();
        let point = (x, y + 8.0 * libm::sinf(x / 30.0));
        let carved = match spot.shape.role {
            Role::Outline => false,
            Role::Object { .. } => !gouge(body, (x, y), 80.0, spot.darkness() * 0.5 - 0.12),
            _ if distance.at(spot.x, spot.y) < 6.0 => true,
            Role::Detail => spot.shape.colour.luma() > 150.0,
            Role::Sky => gouge(sky, point, 200.0, light),
            Role::Ground => gouge(ground, (x, y), 90.0, light),
        };
        if carved { paper } else { ink }
    })
}

/// A cut along a ruling that tapers to nothing and starts anew every `length` canvas units.
fn gouge(ruling: Ruling, point: (f32, f32), length: f32, share: f32) -> bool {
    let row = libm::floorf(ruling.place(point));
    let progress = (ruling.along(point) / length + row * 0.37).rem_euclid(1.0);
    let width = share * (0.35 + 0.65 * libm::sinf(progress * std::f32::consts::PI)) * 1.2;
    (ruling.phase(point) - 0.5).abs() < width / 2.0
}

/// Ink wash with a brush line of changing weight, and a seal.
pub(super) fn sumi(scene: &Scene) -> Image {
    let (paper, ink) = (Rgb::new(242, 240, 230), Rgb::new(26, 26, 30));
    let (thin, thick) = (View::thickened(scene, 1.0), View::thickened(scene, 8.0));
    let distance = thin.distance();
    let mut rng = Rng::new(scene.seed, "sumi");
    let (pressure, bleed) = (Cloud::new(&mut rng, 46.0), Cloud::new(&mut rng, 44.0));
    let night = thin.is_night();
    thin.paint(|spot| {
        let (x, y) = spot.point();
        if seal(x, y) {
            return Rgb::new(200, 42, 36);
        }
        let brush = thick.role(spot.x, spot.y) == Role::Outline && pressure.at(x, y) > 0.0;
        if brush || spot.shape.role == Role::Outline {
            return ink;
        }
        let halo = (distance.at(spot.x, spot.y) / 22.0).min(1.0);
        let wash = match spot.shape.role {
            Role::Sky if night => 0.5 * halo,
            Role::Sky => 0.12 * (1.0 - y / SIDE) * halo,
            Role::Ground => (if night { 0.62 } else { 0.34 }) * halo * (1.1 - (y - scene.horizon) / SIDE),
            Role::Detail => {
                if spot.shape.colour.luma() > 190.0 {
                    0.0
                } else {
                    0.55
                }
            }
            _ => 0.75 * spot.darkness(),
        };
        paper.mix(ink, (wash * (1.0 + 0.3 * bleed.at(x, y))).clamp(0.0, 1.0))
    })
}

/// The red seal in the lower left corner, with a mark cut into it.
fn seal(x: f32, y: f32) -> bool {
    let (u, v) = (x - 12.0, y - SIDE + 44.0);
    let inside = (0.0..32.0).contains(&u) && (0.0..32.0).contains(&v);
    inside && !((13.0..19.0).contains(&u) && (6.0..26.0).contains(&v))
}

/// Black-figure vase painting between two bands of meander.
pub(super) fn vase(scene: &Scene) -> Image {
    let view = View::of(scene);
    view.paint(|spot| {
        let (x, y) = spot.point();
        if let Some(colour) = meander(x, y) {
            return colour;
        }
        figure(&view, spot)
    })
}

const CLAY: Rgb = Rgb::new(214, 116, 62);
const GLAZE: Rgb = Rgb::new(50, 32, 28);
const SLIP: Rgb = Rgb::new(246, 230, 200);

fn figure(view: &View<'_>, spot: Spot<'_>) -> Rgb {
    let setting = view.scene.triple.setting;
    match spot.shape.role {
        Role::Object { main: true } => GLAZE.mix(CLAY, if spot.darkness() < 0.3 { 0.12 } else { 0.0 }),
        Role::Object { main: false } if spot.shape.colour.luma() > 180.0 => SLIP,
        Role::Object { main: false } => Rgb::new(120, 34, 30),
        Role::Outline => CLAY.mix(SLIP, 0.25),
        Role::Detail if setting == Setting::Field && spot.shape.colour.luma() < 200.0 => GLAZE,
        Role::Detail => SLIP,
        Role::Sky => match setting {
            Setting::Night => Rgb::new(152, 68, 40),
            Setting::Wall => Rgb::new(226, 142, 84),
            _ => CLAY,
        },
        Role::Ground => match setting {
            Setting::Night => Rgb::new(104, 44, 30),
            Setting::Sea => Rgb::new(142, 84, 66),
            Setting::Snow => Rgb::new(236, 190, 146),
            Setting::Wall => Rgb::new(128, 56, 34),
            Setting::Field => Rgb::new(176, 88, 44),
        },
    }
}

/// The key pattern along the top and bottom edges, 32 canvas units a turn.
fn meander(x: f32, y: f32) -> Option<Rgb> {
    const KEY: [&[u8; 8]; 4] = [b"########", b"#......#", b"#.####.#", b"##....##"];
    let v = if y < SIDE / 2.0 { y } else { SIDE - y };
    let row = (v / 6.0) as usize;
    let column = (x / 6.0) as usize % 8;
    let line = KEY.get(row)?;
    Some(if line[column] == b'#' { CLAY.mix(GLAZE, 0.7) } else { CLAY })
}
