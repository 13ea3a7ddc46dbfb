//! Line art: blueprint, contour line and echoing outlines.

use super::view::{Spot, View};
use crate::palette::{BLACK, Rgb, Tones, WHITE};
use crate::render::Image;
use crate::scene::{Role, SIDE, Scene};

/// White lines on blue paper with a grid and a frame.
pub(super) fn blueprint(scene: &Scene) -> Image {
    let view = View::thickened(scene, 4.0);
    let night = view.is_night();
    let sheet = if night { Rgb::new(46, 74, 142) } else { Rgb::new(70, 118, 194) };
    let line = Rgb::new(196, 214, 242);
    view.paint(|spot| {
        let (x, y) = spot.point();
        let edge = x.min(y).min(SIDE - x).min(SIDE - y);
        if (6.0..13.0).contains(&edge) {
            return line;
        }
        match spot.shape.role {
            Role::Outline => line,
            Role::Object { main } => sheet.mix(WHITE, if main { 0.12 } else { 0.3 }),
            Role::Detail => sheet.mix(WHITE, 0.5),
            Role::Sky | Role::Ground => {
                let gridded = x.rem_euclid(42.0) < 5.0 || y.rem_euclid(42.0) < 5.0;
                let tint = if spot.shape.role == Role::Sky { sheet } else { sheet.mix(BLACK, 0.24) };
                tint.mix(WHITE, if gridded { 0.12 } else { 0.0 })
            }
        }
    })
}

/// Whether the spot lies on the line where sky meets ground, `width` canvas units thick.
fn horizon(view: &View<'_>, spot: Spot<'_>, width: f32) -> bool {
    let setting = matches!(spot.shape.role, Role::Sky | Role::Ground);
    setting && (spot.y as f32 + 0.5 - view.scene.horizon).abs() < width / 2.0
}

/// One dark line, and behind it the object as a flat patch that has slipped.
pub(super) fn contour(scene: &Scene) -> Image {
    let view = View::thickened(scene, 1.0);
    let night = view.is_night();
    let (paper, line) = if night {
        (Rgb::new(52, 58, 120), Rgb::new(252, 242, 214))
    } else {
        (Rgb::new(246, 240, 230), Rgb::new(64, 58, 76))
    };
    let patch = Tones::of(scene.triple.colour).main.mix(paper, 0.12);
    view.paint(|spot| {
        let slipped = view.role(spot.x - 14, spot.y - 10).is_object();
        let ground = if slipped { patch } else { paper };
        match spot.shape.role {
            Role::Outline => line,
            Role::Detail => ground.mix(line, 0.65),
            _ if horizon(&view, spot, 6.0) => line,
            Role::Object { main: false } if spot.darkness() > 0.8 => line,
            _ => ground,
        }
    })
}

/// Bands that follow the silhouette outwards in the setting's two colours.
pub(super) fn echo(scene: &Scene) -> Image {
    let view = View::thickened(scene, 3.0);
    let distance = view.distance().blurred(2);
    let night = view.is_night();
    let dark = if night { Rgb::new(22, 16, 60) } else { Rgb::new(60, 30, 70) };
    view.paint(|spot| match spot.shape.role {
        Role::Outline => dark,
        Role::Object { .. } => spot.shape.colour.saturated(1.25),
        Role::Sky | Role::Ground | Role::Detail => {
            let band = (distance.at(spot.x, spot.y) / 18.0) as i32;
            let ground = if (spot.y as f32) < scene.horizon { 0 } else { 1 };
            let base = scene.shapes[ground].colour.saturated(1.7);
            let pale = base.mix(Rgb::new(255, 236, 190), if night { 0.4 } else { 0.75 });
            if band % 2 == 0 { pale } else { base.mix(dark, 0.15) }
        }
    })
}
