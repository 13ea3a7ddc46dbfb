//! Screens: a handheld console and a heat camera.

use super::field::Field;
use super::view::{View, WIDTH};
use crate::palette::Rgb;
use crate::render::Image;
use crate::scene::{Role, Scene};
use crate::vocabulary::Setting;

/// Four greens, in blocks of two pixels at 64; the object is always the lightest or the darkest thing.
pub(super) fn handheld(scene: &Scene) -> Image {
    const BLOCK: usize = 8;
    const GREENS: [Rgb; 4] =
        [Rgb::new(18, 54, 34), Rgb::new(50, 104, 56), Rgb::new(140, 172, 40), Rgb::new(208, 222, 120)];
    let view = View::thickened(scene, 3.0);
    let (sky, ground) = match scene.triple.setting {
        Setting::Night => (1, 0),
        Setting::Snow => (2, 3),
        Setting::Field | Setting::Sea | Setting::Wall => (3, 2),
    };
    let shade = |x: usize, y: usize| {
        let spot = view.shape(x as i32, y as i32);
        match spot.role {
            Role::Outline => 0,
            Role::Object { .. } if spot.colour.luma() > 180.0 => 3,
            Role::Object { .. } if spot.colour.luma() > 80.0 || scene.triple.setting == Setting::Night => 2,
            Role::Object { .. } => 1,
            Role::Detail => {
                if sky == 1 || spot.colour.luma() > 220.0 {
                    3
                } else {
                    1
                }
            }
            Role::Sky => sky,
            Role::Ground => ground,
        }
    };
    let middle = |place: usize| place / BLOCK * BLOCK + BLOCK / 2;
    Image::from_fn(WIDTH, |x, y| GREENS[shade(middle(x), middle(y))])
}

/// Heat: the object hottest, its warmth leaking into a cold setting.
pub(super) fn thermal(scene: &Scene) -> Image {
    let view = View::of(scene);
    let night = scene.triple.setting == Setting::Night;
    let (sky, ground) = match scene.triple.setting {
        Setting::Field => (0.16, 0.34),
        Setting::Sea => (0.26, 0.1),
        Setting::Night => (0.04, 0.14),
        Setting::Snow => (0.12, 0.02),
        Setting::Wall => (0.3, 0.2),
    };
    let heat = Field::from_fn(|x, y| {
        let shape = view.shape(x, y);
        match shape.role {
            Role::Sky => sky,
            Role::Ground => ground,
            Role::Detail => {
                if night {
                    0.3
                } else {
                    ground + 0.12
                }
            }
            Role::Outline => 0.46,
            Role::Object { .. } => 0.66 + 0.34 * shape.colour.luma() / 255.0,
        }
    });
    let (sharp, leak) = (heat.blurred(2), heat.blurred(14));
    Image::from_fn(WIDTH, |x, y| {
        let (x, y) = (x as i32, y as i32);
        heat_colour(sharp.at(x, y).max(0.85 * leak.at(x, y)))
    })
}

/// Black, violet, red, orange, yellow, white.
fn heat_colour(heat: f32) -> Rgb {
    const STOPS: [Rgb; 6] = [
        Rgb::new(8, 4, 40),
        Rgb::new(82, 16, 140),
        Rgb::new(190, 30, 110),
        Rgb::new(246, 110, 40),
        Rgb::new(254, 210, 60),
        Rgb::new(255, 255, 230),
    ];
    let place = heat.clamp(0.0, 1.0) * (STOPS.len() - 1) as f32;
    let stop = (place as usize).min(STOPS.len() - 2);
    STOPS[stop].mix(STOPS[stop + 1], place - stop as f32)
}
