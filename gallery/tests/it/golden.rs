//! The look on which the embedded model was trained: it must not drift.

use catelier_gallery::{Colour, Image, Object, Scene, Setting, Triple};

fn reduced(object: Object, colour: Colour, setting: Setting, seed: u64) -> Image {
    Scene::draw(Triple { object, colour, setting }, seed).render().reduced(4)
}

fn assert_looks(image: &Image, expected: [u8; 48]) {
    let furthest = image.pixels().iter().zip(expected).map(|(&found, expected)| found.abs_diff(expected)).max();
    assert!(furthest <= Some(1), "expected {expected:?}, found {:?}", image.pixels());
}

#[test]
fn house_style_by_day_looks_as_it_was_learned() {
    assert_looks(
        &reduced(Object::House, Colour::Red, Setting::Field, 1),
        [
            158, 214, 246, 152, 198, 228, 170, 211, 235, 158, 214, 246, 144, 174, 201, 135, 47, 52, 128, 55, 62, 155,
            207, 238, 151, 159, 139, 169, 69, 57, 158, 73, 62, 152, 203, 172, 155, 176, 92, 146, 124, 71, 160, 117, 71,
            154, 206, 102,
        ],
    );
}

#[test]
fn house_style_at_night_looks_as_it_was_learned() {
    assert_looks(
        &reduced(Object::Umbrella, Colour::Blue, Setting::Night, 2),
        [
            38, 44, 96, 38, 44, 93, 39, 45, 96, 63, 67, 108, 43, 60, 137, 34, 64, 163, 36, 66, 165, 36, 44, 97, 35, 57,
            86, 46, 59, 81, 35, 56, 84, 35, 56, 82, 34, 66, 74, 43, 67, 72, 45, 67, 71, 34, 66, 74,
        ],
    );
}
