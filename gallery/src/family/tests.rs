//! Styles are many, named by their words, functions of their seeds, and keep the object in sight.

use std::collections::HashSet;

use rayon::prelude::*;

use super::RandomStyle;
use super::choices::WORDS;
use crate::render::Image;
use crate::scene::Scene;
use crate::styles::Artist;
use crate::styles::tests::{contrast, difference};
use crate::vocabulary::{Colour, Object, Setting, Triple};

/// A scene whose triple goes through all objects, colours and settings.
fn scene(place: usize) -> Scene {
    let (object, colour) = (Object::ALL[place % 10], Colour::ALL[(place * 3 + place / 10) % 8]);
    Scene::draw(Triple { object, colour, setting: Setting::ALL[place % 5] }, place as u64)
}

#[test]
fn a_seed_is_a_style() {
    for seed in [0, 1, 7, u64::MAX] {
        let draw = |seed| RandomStyle::draw(seed).redraw(&scene(3));
        assert_eq!(draw(seed), draw(seed));
        assert_ne!(draw(seed), draw(seed.wrapping_add(1)));
    }
}

#[test]
fn a_small_picture_is_painted_from_fewer_pixels_and_looks_the_same() {
    let (small, reduced): (Vec<Image>, Vec<Image>) = (0..40)
        .map(|seed| (RandomStyle::draw(seed), scene(seed as usize)))
        .map(|(style, scene)| (style.redraw_at(&scene, 64), style.redraw(&scene).reduced(64)))
        .unzip();
    assert!(small.iter().all(|image| image.side() == 64));
    let difference = difference(&small, &reduced);
    assert!(difference < 6.0, "{difference:.1} levels");
}

#[test]
fn thousands_of_styles_differ_in_their_choices() {
    let styles: Vec<RandomStyle> = (0..4_000).map(RandomStyle::draw).collect();
    let choices: HashSet<_> = styles.iter().map(|style| style.choices).collect();
    assert!(choices.len() > 3_500, "{} combinations of choices", choices.len());
    let words: HashSet<_> = styles.iter().map(RandomStyle::words).collect();
    assert!(words.len() > 2_000, "{} combinations of words", words.len());
}

#[test]
fn every_word_is_used_and_few_are_said_at_once() {
    let vocabulary = RandomStyle::vocabulary();
    let mut used = HashSet::new();
    for seed in 0..4_000 {
        let words = RandomStyle::draw(seed).words();
        assert!(WORDS.contains(&words.len()), "seed {seed}: {words:?}");
        assert_eq!(words.iter().collect::<HashSet<_>>().len(), words.len(), "seed {seed}: {words:?}");
        used.extend(words);
    }
    assert_eq!(used, vocabulary.iter().copied().collect());
    assert_eq!(used.len(), vocabulary.len(), "a word stands for two things");
}

#[test]
fn words_are_not_those_of_scenes_or_artists() {
    let scenes: Vec<String> = Triple::all().map(Triple::caption).collect();
    for word in RandomStyle::vocabulary() {
        assert!(word.bytes().all(|byte| byte.is_ascii_lowercase()), "{word}");
        assert!(Artist::named(word).is_err(), "{word}");
        assert!(!scenes.iter().any(|caption| caption.split(' ').any(|other| other == word)), "{word}");
    }
}

#[test]
fn a_caption_ends_with_the_words() {
    let style = RandomStyle::draw(1);
    let triple = Triple { object: Object::House, colour: Colour::Red, setting: Setting::Field };
    assert_eq!(style.caption(triple), format!("a red house in a field, {}", style.words().join(", ")));
}

#[test]
fn readme_lists_every_word() {
    let readme = include_str!("../../README.md");
    let words = RandomStyle::vocabulary();
    let missing: Vec<_> = words.iter().filter(|word| !readme.contains(&format!("`{word}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Every style in every setting, with an object and a colour that change from style to style.
#[test]
fn every_style_keeps_the_object_visible() {
    let scene = |seed: u64, setting: Setting| {
        let (object, colour) = (Object::ALL[seed as usize % 10], Colour::ALL[(seed / 10) as usize % 8]);
        Scene::draw(Triple { object, colour, setting }, seed)
    };
    let drowned: Vec<String> = (0..1_000_u64)
        .into_par_iter()
        .map(|case| (RandomStyle::draw(case / 5), scene(case / 5, Setting::ALL[case as usize % 5])))
        .map(|(style, scene)| (contrast(&scene, &style.redraw(&scene)), style.caption(scene.triple), scene.seed))
        .filter(|&(contrast, ..)| contrast < 40.0)
        .map(|(contrast, caption, seed)| format!("{caption} (seed {seed}): {contrast:.0}"))
        .collect();
    assert!(drowned.is_empty(), "too little contrast: {drowned:#?}");
}

/// Five scenes, one in each setting.
fn show(draw: impl Fn(&Scene) -> Image) -> Vec<Image> {
    (0..5).map(|place| draw(&scene(place)).reduced(64)).collect()
}

#[test]
fn styles_differ_more_than_scenes_do() {
    let house = |shift| show(|scene| Scene::draw(scene.triple, scene.seed + shift).render());
    let jitter = difference(&house(0), &house(100));
    let shows: Vec<Vec<Image>> =
        (0..60).into_par_iter().map(|seed| show(|scene| RandomStyle::draw(seed).redraw(scene))).collect();
    let pairs = (0..60).flat_map(|one| (0..one).map(move |other| (one, other)));
    let apart: Vec<f64> = pairs.map(|(one, other)| difference(&shows[one], &shows[other])).collect();
    let alike = apart.iter().filter(|&&apart| apart < jitter).count();
    assert!(alike * 10 < apart.len(), "{alike} of {} pairs differ by less than {jitter:.0} levels", apart.len());
    let least = apart.iter().copied().fold(f64::MAX, f64::min);
    assert!(least > 12.0, "two styles differ by only {least:.1} levels");
}
