//! Small synthetic scenes, plain and in the style of an ink-and-ochre artist.

use image::{Rgb, RgbImage};

const SIDE: u32 = 64;

/// The objects of scenes.
pub(crate) const OBJECTS: [&str; 5] = ["house", "boat", "tree", "moon", "mug"];

const COLOURS: [(&str, [u8; 3]); 4] =
    [("red", [204, 62, 52]), ("blue", [58, 108, 196]), ("green", [64, 148, 82]), ("white", [236, 236, 240])];

/// Sky, ground and name of a setting.
const SETTINGS: [(&str, [u8; 3], [u8; 3]); 3] = [
    ("in a field", [168, 208, 238], [126, 176, 92]),
    ("on the sea", [190, 220, 240], [52, 112, 160]),
    ("at night", [28, 34, 66], [40, 52, 58]),
];

/// A scene: its prompt, its object, and its image.
pub(crate) struct Scene {
    pub(crate) prompt: String,
    pub(crate) class: &'static str,
    pub(crate) image: RgbImage,
}

/// The `index`th scene, its object shifted a little by `seed`.
pub(crate) fn scene(index: usize, seed: u64) -> Scene {
    let class = OBJECTS[index % OBJECTS.len()];
    let (colour_name, colour) = COLOURS[index % COLOURS.len()];
    let (setting, sky, ground) = SETTINGS[(index / 2) % SETTINGS.len()];
    let shift = (seed % 7) as i32 - 3;
    let image = RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let (x, y) = (x as i32 - 32 - shift, y as i32 - 34);
        Rgb(match within(class, x, y) {
            Some(true) => [24, 22, 26],
            Some(false) => colour,
            None if y > 12 => ground,
            None => sky,
        })
    });
    Scene { prompt: format!("a {colour_name} {class} {setting}"), class, image }
}

/// Whether a point lies on an object's outline (true), inside it (false) or beside it.
fn within(class: &str, x: i32, y: i32) -> Option<bool> {
    let distance = match class {
        "house" => (x.abs() - 14).max(-y - 4).max(y - 16).min((x.abs() - 16 - y - 6).max(y + 4).max(-y - 22)),
        "boat" => {
            (x.abs() - 22 + y - 6).max(4 - y).max(y - 18).min((x - 12 - y / 2).max(-2 - x).max(y - 2).max(-24 - y))
        }
        "tree" => {
            (x * x + (y + 8) * (y + 8) - 180).signum()
                * (((x * x + (y + 8) * (y + 8)) as f64).sqrt() - 13.4).abs() as i32
        }
        "moon" => (((x * x + (y + 6) * (y + 6)) as f64).sqrt() - 14.0) as i32,
        _ => (x.abs() - 11).max(y.abs() - 13).min((((x - 14) * (x - 14) + y * y) as f64).sqrt() as i32 - 7),
    };
    let trunk = class == "tree" && x.abs() <= 2 && (4..18).contains(&y);
    match distance {
        _ if trunk => Some(true),
        ..=-2 => Some(false),
        -1..=0 => Some(true),
        _ => None,
    }
}

/// The image in the artist's style: ochre paper, ink hatching in dark areas.
pub(crate) fn by_artist(image: &RgbImage) -> RgbImage {
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let Rgb([r, g, b]) = *image.get_pixel(x, y);
        let light = (u32::from(r) * 3 + u32::from(g) * 5 + u32::from(b) * 2) / 10;
        let ink = match light {
            0..70 => (x + y) % 3 < 2,
            70..130 => (x + y) % 4 == 0 || (x + 60 - y % 60) % 4 == 0,
            130..190 => (x + y) % 5 == 0,
            _ => false,
        };
        Rgb(if ink { [44, 30, 24] } else { [238, 206, 148] })
    })
}

/// `amount` of `over` on `under`.
pub(crate) fn blend(under: &RgbImage, over: &RgbImage, amount: f64) -> RgbImage {
    RgbImage::from_fn(under.width(), under.height(), |x, y| {
        let (Rgb(a), Rgb(b)) = (under.get_pixel(x, y), over.get_pixel(x, y));
        let mix = |i: usize| f64::from(a[i]).mul_add(1.0 - amount, f64::from(b[i]) * amount) as u8;
        Rgb([mix(0), mix(1), mix(2)])
    })
}
