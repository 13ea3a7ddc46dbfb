//! Artists differ visibly, and objects stay visible at night.

use rayon::prelude::*;

use super::view::{View, WIDTH};
use super::{ARTISTS, Artist, Catalogue, DEFAULT_ARTIST};
use crate::render::Image;
use crate::scene::{Role, Scene};
use crate::vocabulary::{Colour, Object, Setting, Triple};

/// One triple for every object, through all colours and settings.
fn samples() -> Vec<Triple> {
    let colour = |place: usize| Colour::ALL[(3 * place) % 8];
    let triple =
        |(place, &object): (usize, &Object)| Triple { object, colour: colour(place), setting: Setting::ALL[place % 5] };
    Object::ALL.iter().enumerate().map(triple).collect()
}

/// The root mean square difference of two sets of images, in levels of 0 to 255.
pub(crate) fn difference(left: &[Image], right: &[Image]) -> f64 {
    let pairs = left.iter().zip(right).flat_map(|(left, right)| left.pixels().iter().zip(right.pixels()));
    let (sum, count) =
        pairs.fold((0.0, 0.0), |(sum, count), (&a, &b)| (sum + (f64::from(a) - f64::from(b)).powi(2), count + 1.0));
    (sum / count).sqrt()
}

#[test]
fn artists_differ_from_the_house_style_and_from_each_other() {
    let samples = samples();
    let mut shows: Vec<(&str, Vec<Image>)> = ARTISTS
        .par_iter()
        .map(|artist| (artist.name, samples.iter().map(|&triple| artist.draw(triple, 7).reduced(64)).collect()))
        .collect();
    shows.push(("house", samples.iter().map(|&triple| Scene::draw(triple, 7).render().reduced(64)).collect()));
    for (place, (name, show)) in shows.iter().enumerate() {
        for (other, against) in &shows[..place] {
            let difference = difference(show, against);
            assert!(difference > 20.0, "`{name}` and `{other}` differ by only {difference:.1} levels");
        }
    }
}

/// Contrast of the object: the largest colour distance (0 to 441) between its inside and the setting, between the
/// strips on both sides of its edge, and between the outer strip (a halo) and the setting.
pub(crate) fn contrast(scene: &Scene, image: &Image) -> f32 {
    let view = View::thickened(scene, 2.0);
    let outside = view.distance();
    let inside = super::field::Field::distance(|x, y| !view.role(x, y).is_object());
    let mean = |belongs: &dyn Fn(i32, i32) -> bool| {
        let (mut sum, mut count) = ([0.0_f32; 3], 0.0_f32);
        for place in 0..WIDTH * WIDTH {
            let (x, y) = (place % WIDTH, place / WIDTH);
            if belongs(x as i32, y as i32) {
                sum.iter_mut().zip(image.at(x, y).0).for_each(|(total, channel)| *total += f32::from(channel));
                count += 1.0;
            }
        }
        sum.map(|total| total / count.max(1.0))
    };
    let apart =
        |left: [f32; 3], right: [f32; 3]| left.iter().zip(right).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    let body = mean(&|x, y| matches!(view.role(x, y), Role::Object { .. }));
    let setting = mean(&|x, y| outside.at(x, y) > 12.0);
    let inner = mean(&|x, y| (1.0..7.0).contains(&inside.at(x, y)));
    let outer = mean(&|x, y| (1.0..7.0).contains(&outside.at(x, y)));
    apart(body, setting).max(apart(inner, outer)).max(apart(outer, setting))
}

fn faintest(setting: Setting, colours: &[Colour], draw: impl Fn(&Scene) -> Image) -> (f32, String) {
    let mut faintest = (f32::MAX, String::new());
    for &object in Object::ALL {
        for &colour in colours {
            let scene = Scene::draw(Triple { object, colour, setting }, 5);
            let contrast = contrast(&scene, &draw(&scene));
            if contrast < faintest.0 {
                faintest = (contrast, scene.triple.caption());
            }
        }
    }
    faintest
}

#[test]
fn every_artist_keeps_the_object_visible_at_night() {
    let drowned: Vec<String> = ARTISTS
        .par_iter()
        .map(|artist| {
            (artist.name, faintest(Setting::Night, &[Colour::Blue, Colour::Purple], |scene| artist.redraw(scene)))
        })
        .filter(|(_, (contrast, _))| *contrast < 45.0)
        .map(|(name, (contrast, caption))| format!("`{name}`, {caption}: {contrast:.0}"))
        .collect();
    assert!(drowned.is_empty(), "too little contrast: {drowned:?}");
}

#[test]
fn house_style_keeps_every_object_visible() {
    let colours = [Colour::White, Colour::Green, Colour::Blue];
    let drowned: Vec<String> = Setting::ALL
        .par_iter()
        .map(|&setting| faintest(setting, &colours, Scene::render))
        .filter(|(contrast, _)| *contrast < 60.0)
        .map(|(contrast, caption)| format!("{caption}: {contrast:.0}"))
        .collect();
    assert!(drowned.is_empty(), "too little contrast: {drowned:?}");
}

#[test]
fn artists_are_sorted_and_named_once() {
    assert!(ARTISTS.len() >= 20);
    assert!(ARTISTS.windows(2).all(|pair| pair[0].name < pair[1].name));
    assert!(Artist::named(DEFAULT_ARTIST).is_ok());
}

#[test]
fn unknown_artist_is_named_in_the_error() {
    let error = Artist::named("rembrandt").expect_err("the gallery has no such artist");
    assert_eq!(error.to_string(), "expected the name of an artist in the gallery, found `rembrandt`");
    assert!(error.hint().is_some_and(|hint| hint.contains("gallery list")));
}

#[test]
fn catalogue_lists_names_and_descriptions_alone() {
    let listed = serde_json::to_value(Catalogue::new()).expect("plain text serialises");
    let first = &listed["artists"][0];
    assert_eq!(first["name"], ARTISTS[0].name);
    assert_eq!(first["description"], ARTISTS[0].description);
    assert_eq!(first.as_object().map(|fields| fields.len()), Some(2));
}

#[test]
fn readme_describes_every_artist() {
    let readme = include_str!("../../README.md");
    for artist in ARTISTS {
        assert!(
            readme.contains(&format!("| `{}` | {} |", artist.name, artist.description)),
            "`{}` is missing",
            artist.name
        );
    }
}
