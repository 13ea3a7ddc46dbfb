//! Indices of made-up styles: who is found, what is said about it, and what is refused.

use catelier_features::{Extractor, Feature, ImageFeatures};
use catelier_style::{AdapterLink, Artist, Error, Prototype, StyleIndex, StyleModel};
use image::RgbImage;

use crate::direction;

/// A tower for an index whose directions are given.
struct NoTower(Extractor);

impl ImageFeatures for NoTower {
    fn extractor(&self) -> &Extractor {
        &self.0
    }

    fn image_features(&self, _: &[&RgbImage]) -> catelier_features::Result<Vec<Feature>> {
        Ok(Vec::new())
    }
}

fn model() -> StyleModel {
    StyleModel::new(NoTower(Extractor { name: "made up".into(), sha256: "ab".into() }), None).unwrap()
}

fn artist(number: u64, works: u64, spread: f32) -> Artist {
    let works = (0..works).map(|work| direction(number, work, spread)).collect();
    Artist::of_works(format!("artist {number:02}"), works, 1).unwrap()
}

fn index(artists: Vec<Artist>) -> Result<StyleIndex, Error> {
    StyleIndex::build(&model(), artists)
}

/// Twelve artists of six works.
fn twelve(spread: f32) -> StyleIndex {
    index((0..12).map(|number| artist(number, 6, spread)).collect()).unwrap()
}

#[test]
fn a_new_work_finds_its_artist_with_a_high_probability() {
    let index = twelve(0.4);
    for number in 0..12 {
        let search = index.search(&[direction(number, 77, 0.4)], 3).unwrap();
        assert_eq!(search.found.len(), 3);
        let best = &search.found[0];
        assert_eq!((best.artist.as_str(), best.works), (format!("artist {number:02}").as_str(), 6));
        assert!(best.probability.unwrap() > 0.5 && search.fits == Some(true), "{best:?}");
        let second = search.found[1].probability.unwrap();
        assert!(second < best.probability.unwrap() - 0.3 && best.told_apart == Some(true), "{search:?}");
    }
    let calibration = index.calibration().unwrap();
    assert!(calibration.works == 72 && calibration.accuracy > 0.95 && calibration.error < 0.1, "{calibration:?}");
}

#[test]
fn nobody_fits_a_work_of_an_artist_who_is_not_there() {
    let index = twelve(0.4);
    let fits =
        (100..150).filter(|number| index.search(&[direction(*number, 0, 0.4)], 1).unwrap().fits.unwrap()).count();
    assert!(fits <= 5, "{fits} of 50 strangers");
}

#[test]
fn several_references_say_more_than_one() {
    let index = twelve(1.2);
    let found = |count: u64| {
        let first = |number: &u64| {
            let references: Vec<Feature> = (50..50 + count).map(|work| direction(*number, work, 1.2)).collect();
            index.search(&references, 1).unwrap().found[0].artist == format!("artist {number:02}")
        };
        (0..12).filter(first).count()
    };
    assert!(found(6) > found(1) && found(6) >= 11, "{} {}", found(6), found(1));
}

/// Twins have other works in the same style; an interval of 95 % may miss some of twelve.
#[test]
fn artists_that_the_model_cannot_tell_apart_are_named_as_such() {
    let twin = |number: u64| {
        let works = (20..26).map(|work| direction(number, work, 0.4)).collect();
        Artist::of_works(format!("twin {number:02}"), works, 1).unwrap()
    };
    let artists = (0..12).map(|number| artist(number, 6, 0.4)).chain((0..6).map(twin)).collect();
    let index = index(artists).unwrap();
    let mut told_apart = 0;
    for number in 0..6 {
        let names = [format!("artist {number:02}"), format!("twin {number:02}")];
        for (name, rival) in [(&names[0], &names[1]), (&names[1], &names[0])] {
            let gap = &index.artist(name).unwrap().gap;
            assert_eq!(&gap.rival, rival);
            told_apart += usize::from(gap.is_told_apart() == Some(true));
        }
    }
    assert!(told_apart <= 3, "{told_apart} of 12 twins");
    for number in 6..12 {
        assert_eq!(index.artist(&format!("artist {number:02}")).unwrap().gap.is_told_apart(), Some(true));
    }
}

#[test]
fn a_gap_follows_from_the_prototypes_alone() {
    let with_works: Vec<Artist> = (0..5).map(|number| artist(number, 6, 0.5)).collect();
    let without =
        with_works.iter().map(|own| Artist { works: Vec::new(), groups: Vec::new(), ..own.clone() }).collect();
    let (with, without) = (index(with_works.clone()).unwrap(), index(without).unwrap());
    for (known, alone) in with.artists().iter().zip(without.artists()) {
        let (known, alone) = (&known.gap, &alone.gap);
        assert!((known.value.unwrap() - alone.value.unwrap()).abs() < 1e-6, "{known:?} {alone:?}");
        assert!(known.low.unwrap() < known.value.unwrap() && known.value.unwrap() < known.high.unwrap(), "{known:?}");
        assert_eq!((alone.low, &known.rival), (None, &alone.rival));
    }
    // By its definition: every pair of works.
    let cosine = |left: &Feature, right: &Feature| left.iter().zip(right).map(|(l, r)| f64::from(l * r)).sum::<f64>();
    let works = &with_works[0].works;
    let pairs = (0..6).flat_map(|left| (0..6).filter(move |right| *right != left).map(move |right| (left, right)));
    let own = pairs.map(|(left, right)| cosine(&works[left], &works[right])).sum::<f64>() / 30.0;
    let mean_to =
        |other: &Artist| works.iter().flat_map(|l| other.works.iter().map(move |r| cosine(l, r))).sum::<f64>() / 36.0;
    let largest = with_works[1..].iter().map(mean_to).fold(f64::NEG_INFINITY, f64::max);
    assert!((with.artists()[0].gap.value.unwrap() - (own - largest)).abs() < 1e-5);
    assert_eq!(without.calibration(), None);
    assert_eq!(without.search(&[direction(0, 70, 0.5)], 1).unwrap().fits, None);
}

/// A prototype in the middle of all others has the highest cosine to many references; who sends one gains nothing by it.
#[test]
fn a_prototype_that_is_near_to_everybody_wins_no_search() {
    let mut artists: Vec<Artist> = (0..40).map(|number| artist(number, 1, 1.0)).collect();
    // Styles that share a direction, as features of real towers do.
    let shared: Feature = direction(999, 0, 0.0);
    let moved = |work: &Feature| -> Feature {
        let sum: Vec<f32> = work.iter().zip(&shared).map(|(own, shared)| own + 2.0 * shared).collect();
        let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
        sum.iter().map(|value| value / length).collect()
    };
    for artist in &mut artists {
        *artist = Artist::of_works(artist.name.clone(), artist.works.iter().map(moved).collect(), 1).unwrap();
    }
    let hub = Prototype { direction: shared.clone(), count: 9, concentration: 0.9 };
    artists.push(Artist { name: "hub".into(), prototypes: vec![hub], ..Artist::default() });
    let index = index(artists).unwrap();
    let cosine = |left: &[f32], right: &[f32]| left.iter().zip(right).map(|(l, r)| l * r).sum::<f32>();
    let (mut by_cosine, mut by_score) = (0, 0);
    for number in 0..40 {
        let query = moved(&direction(number, 60, 1.0));
        let own = index.artist(&format!("artist {number:02}")).unwrap();
        by_cosine += usize::from(cosine(&query, &shared) > cosine(&query, &own.prototypes[0].direction));
        by_score += usize::from(index.search(&[query], 1).unwrap().found[0].artist == "hub");
    }
    assert!(by_cosine >= 5 && by_score * 3 <= by_cosine, "{by_cosine} by cosine, {by_score} by score");
}

#[test]
fn what_cannot_be_indexed_is_refused_by_name() {
    let text = |artists: Vec<Artist>| {
        let error = index(artists).unwrap_err();
        format!("{error} / {}", error.hint().unwrap_or_default())
    };
    assert!(text(vec![artist(0, 3, 0.4)]).contains("at least 2 artists, found 1"));
    assert!(text(vec![]).contains("found 0"));
    assert!(text(vec![artist(0, 3, 0.4), artist(0, 4, 0.4)]).contains("two artists are called `artist 00`"));
    let copy = Artist { name: "copy".into(), ..artist(0, 3, 0.4) };
    assert!(text(vec![artist(0, 3, 0.4), artist(1, 3, 0.4), copy.clone()]).contains("the same works"));
    let bare = |artist: Artist| Artist { works: Vec::new(), groups: Vec::new(), ..artist };
    assert!(text(vec![bare(artist(0, 3, 0.4)), artist(1, 3, 0.4), bare(copy)]).contains("the same works"));
    assert!(
        text(vec![artist(0, 3, 0.4), Artist { name: "none".into(), ..Artist::default() }])
            .contains("`none` has no works")
    );
    assert!(
        text(vec![artist(0, 3, 0.4), Artist { name: "two\nlines".into(), ..artist(1, 3, 0.4) }]).contains("control")
    );
    let mut poisoned = artist(1, 3, 0.4);
    poisoned.prototypes[0].direction[2] = f32::NAN;
    assert!(text(vec![artist(0, 3, 0.4), poisoned]).contains("`artist 01` brings a prototype that cannot be used"));
}

#[test]
fn an_artist_with_one_work_is_indexed_and_its_gap_is_unknown() {
    let artists = (0..6).map(|number| artist(number, 5, 0.3)).chain([artist(6, 1, 0.3)]).collect();
    let index = index(artists).unwrap();
    let search = index.search(&[direction(6, 9, 0.3)], 1).unwrap();
    assert_eq!((search.found[0].artist.as_str(), search.found[0].told_apart), ("artist 06", None));
}

#[test]
fn references_that_point_nowhere_are_refused() {
    let index = twelve(0.4);
    let (there, back) = (direction(0, 0, 0.4), direction(0, 0, 0.4).iter().map(|value| -value).collect());
    assert!(index.search(&[there, back], 1).unwrap_err().to_string().contains("no direction"));
    assert!(matches!(index.search(&[], 1), Err(Error::NoDirection { .. })));
    assert!(matches!(index.search(&[vec![1.0; 3]], 1), Err(Error::Width { expected: 16, found: 3 })));
}

#[test]
fn noise_moves_the_prototype_and_is_refused_for_several() {
    let quiet = artist(0, 6, 0.4);
    let noisy = quiet.clone().with_noise(0.3, 1, 0).unwrap();
    assert_ne!(quiet.prototypes, noisy.prototypes);
    let works = quiet.works.iter().chain(&artist(9, 6, 0.4).works).cloned().collect();
    let several = Artist::of_works("both", works, 2).unwrap();
    assert_eq!(several.prototypes.len(), 2);
    assert!(matches!(several.with_noise(0.3, 1, 0), Err(Error::NoiseOnClusters { prototypes: 2 })));
}

#[test]
fn several_prototypes_find_an_artist_with_two_styles() {
    let both: Vec<Feature> = artist(0, 6, 0.4).works.into_iter().chain(artist(30, 6, 0.4).works).collect();
    let others: Vec<Artist> = (1..12).map(|number| artist(number, 6, 0.4)).collect();
    let probability = |most: usize| {
        let two_styles = Artist::of_works("both", both.clone(), most).unwrap();
        let index = index(others.iter().cloned().chain([two_styles]).collect()).unwrap();
        let search = index.search(&[direction(30, 50, 0.4)], 1).unwrap();
        assert_eq!(search.found[0].artist, "both");
        search.found[0].score
    };
    assert!(probability(2) > probability(1) + 0.1, "{} {}", probability(2), probability(1));
}

#[test]
fn an_index_is_read_back_to_the_bit_and_a_changed_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index");
    let mut index = index((0..6).map(|number| artist(number, 6, 0.4)).collect()).unwrap();
    index.link("artist 05", AdapterLink { path: "five.safetensors".into(), hash: "cd".into() }).unwrap();
    assert!(index.link("nobody", AdapterLink { path: String::new(), hash: String::new() }).is_err());
    index.save(&path).unwrap();
    let loaded = StyleIndex::load(&path).unwrap();
    assert_eq!((loaded.artists(), loaded.calibration()), (index.artists(), index.calibration()));
    let query = [direction(2, 40, 0.4)];
    assert_eq!(loaded.search(&query, 6).unwrap(), index.search(&query, 6).unwrap());
    let again = folder.path().join("again");
    loaded.save(&again).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes, std::fs::read(&again).unwrap());
    for place in (0..bytes.len()).step_by(bytes.len() / 60) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 4;
        std::fs::write(&path, &damaged).unwrap();
        assert!(StyleIndex::load(&path).is_err(), "byte {place}");
    }
}

#[test]
fn names_that_are_nearly_right_are_offered() {
    let index = twelve(0.4);
    let hint = |name: &str| index.artist(name).unwrap_err().hint();
    assert_eq!(hint("Artist 0").unwrap(), "did you mean `artist 00`?");
    assert_eq!(hint("zoe"), None);
}
