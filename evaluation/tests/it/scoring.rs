//! Whole evaluations on synthetic images.

use catelier_evaluation::{Error, METRICS, Models, Scores};

use crate::world::{BLUE, ByColour, GREEN, RED, World};

fn score(world: &World) -> Scores {
    world.evaluation().score(by(&ByColour::new())).unwrap()
}

/// One extractor for everything.
fn by(extractor: &ByColour) -> Models<'_> {
    Models { clip: extractor, style: None }
}

#[test]
fn an_adapter_that_does_nothing_keeps_all_and_has_no_style() {
    let scores = score(&World::new(RED, GREEN, RED));
    let painter = score(&World::new(RED, GREEN, BLUE));
    assert_eq!(scores.kps_no_token.mean, 1.0);
    assert_eq!(scores.class_collapse.unwrap().mean, 0.0);
    assert!(scores.identity.unwrap().mean + 0.3 < painter.identity.unwrap().mean);
    assert!(scores.kps_joint.unwrap().mean < painter.kps_joint.unwrap().mean);
    assert!(scores.style.unwrap().score.mean < 0.01 && painter.style.unwrap().score.mean > 0.99);
    assert_eq!([&scores, &painter].map(|scores| scores.preservation.unwrap().score.mean), [1.0, 1.0]);
}

/// The adapter draws in the artist's colour, but not what was asked for: `identity` alone would praise it.
#[test]
fn a_style_without_its_content_is_worth_nothing() {
    let world = World::new(RED, GREEN, BLUE);
    let mut evaluation = world.evaluation();
    evaluation.with_trigger[0].prompt = "a red house".to_owned();
    let scores = evaluation.score(by(&ByColour::new())).unwrap();
    assert!(scores.identity.unwrap().mean > 0.99 && scores.style.unwrap().score.mean > 0.99);
    assert_eq!(scores.content.unwrap().score.mean, 0.0);
    assert_eq!(scores.facets[0].with_trigger, Some(0.0));
    assert!(scores.kps_joint.unwrap().mean < 1e-6);
}

/// Nobody can be asked to show what the artist does not show.
#[test]
fn content_is_scaled_to_what_the_artist_shows() {
    let mut world = World::new(RED, GREEN, GREEN);
    let ceiling = |world: &World| score(world).content.map(|content| content.ceiling);
    assert_eq!(ceiling(&world), Some(1.0));
    for (reference, caption) in world.references.iter_mut().zip(["a blue cat", "a red house"]) {
        reference.caption = Some(caption.to_owned());
    }
    assert_eq!(ceiling(&world), Some(0.5));
    world.references.iter_mut().for_each(|reference| reference.caption = Some("a red house".to_owned()));
    assert_eq!(ceiling(&world), None, "an artist who shows no content leaves nothing to look for");
}

#[test]
fn the_artist_is_told_from_others() {
    let (blue, green) = (score(&World::new(RED, GREEN, BLUE)), score(&World::new(RED, GREEN, GREEN)));
    assert_eq!([blue, green.clone()].map(|scores| scores.artist_found.unwrap().mean), [1.0, 0.0]);
    assert_eq!(green.nearest_other.unwrap().name, "gardener");
}

#[test]
fn a_changed_colour_is_not_nine_tenths_kept() {
    let scores = score(&World::new(BLUE, GREEN, BLUE));
    let preservation = scores.preservation.unwrap();
    assert_eq!(preservation.raw, scores.kps_no_token);
    assert_eq!(preservation.floor, scores.base_pair_similarity.unwrap().mean);
    assert!(preservation.score.mean < scores.kps_no_token.mean - 0.1);
}

#[test]
fn a_leaking_adapter_loses_and_its_worst_class_is_named() {
    let scores = score(&World::new(BLUE, GREEN, BLUE));
    assert!(scores.kps_no_token.mean < 0.8);
    assert_eq!(scores.worst_class().unwrap().name, "house");
    assert_eq!(scores.kinds[0].name, "same-class");
    assert!(scores.images[0].similarity < 0.6);
    assert!(scores.base_pair_similarity.unwrap().mean < 0.6);
    assert_eq!(scores.images[1].similarity, 1.0);
}

#[test]
fn painting_everything_alike_is_collapse() {
    let scores = score(&World::new(BLUE, BLUE, BLUE));
    assert!(scores.class_collapse.unwrap().mean > 0.4);
}

#[test]
fn images_that_follow_their_words_have_high_prompt_similarity() {
    let follows = score(&World::new(RED, GREEN, BLUE));
    let ignores = score(&World::new(GREEN, RED, RED));
    assert!(follows.prompt_similarity.mean > 0.9);
    assert!(ignores.prompt_similarity.mean < 0.2);
    assert_eq!(follows.base_prompt_similarity, ignores.base_prompt_similarity);
}

#[test]
fn without_references_only_what_needs_none_is_scored() {
    let world = World::new(RED, GREEN, BLUE);
    let mut evaluation = world.evaluation();
    evaluation.references = &[];
    let scores = evaluation.score(by(&ByColour::new())).unwrap();
    assert_eq!((scores.identity, scores.kps_joint, scores.base_identity), (None, None, None));
    assert_eq!(scores.kps_no_token.n, 2);
}

#[test]
fn no_pair_is_an_error() {
    let world = World::new(RED, GREEN, BLUE);
    let mut evaluation = world.evaluation();
    evaluation.without_trigger.clear();
    let error = evaluation.score(by(&ByColour::new())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot compute `kps_no_token`: expected at least 1 images without the trigger, found 0"
    );
}

/// Equal except for the last bit of a value that was parsed from decimal digits.
fn assert_same(read: &Scores, written: &Scores) {
    for name in METRICS.iter().map(|metric| metric.name) {
        let (read, written) = (read.named(name).unwrap(), written.named(name).unwrap());
        let apart = [read.mean - written.mean, read.low - written.low, read.high - written.high];
        assert!(apart.iter().all(|apart| apart.abs() < 1e-12), "{name}: {apart:?}");
        assert_eq!(read.n, written.n, "{name}");
    }
    assert_eq!((&read.extractor, &read.generation), (&written.extractor, &written.generation));
    assert_eq!((&read.counts, &read.seeds), (&written.counts, &written.seeds));
    assert_eq!(read.images.len(), written.images.len());
}

#[test]
fn scores_survive_json_and_carry_the_names_that_other_tools_read() {
    let scores = score(&World::new(BLUE, GREEN, BLUE));
    let json = scores.to_json();
    assert_same(&Scores::from_json(&json).unwrap(), &scores);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["format"], "catelier-scores");
    assert_eq!(value["version"], 2);
    for name in ["style", "content", "preservation", "kps_no_token", "kps_joint", "identity", "prompt_similarity"] {
        for field in ["mean", "low", "high", "n"] {
            assert!(value[name][field].is_number(), "{name}.{field}");
        }
    }
    assert_eq!(value["generation"]["trigger"], "sks");
    assert_eq!(value["extractor"]["name"], "by colour");
    assert_eq!(value["pictures"][0]["kind"], "same-class");
}

#[test]
fn another_format_or_a_newer_version_is_refused() {
    let json = score(&World::new(RED, GREEN, BLUE)).to_json();
    let newer = json.replacen("\"version\": 2", "\"version\": 9", 1);
    assert!(matches!(Scores::from_json(&newer), Err(Error::ScoreFormat { found_version: 9, .. })));
    let other = json.replacen("catelier-scores", "something else", 1);
    assert!(matches!(Scores::from_json(&other), Err(Error::ScoreFormat { .. })));
    assert!(matches!(Scores::from_json("[1]"), Err(Error::ScoreFile { .. })));
}

/// In version 1 `kps_joint` was the mean of two other scores.
#[test]
fn a_file_of_version_1_is_read_without_the_scores_that_it_lacks() {
    let scores = score(&World::new(BLUE, GREEN, BLUE));
    let mut file: serde_json::Value = serde_json::from_str(&scores.to_json()).unwrap();
    let new = ["style", "content", "preservation", "content_no_token", "artist_found", "nearest_other", "facets"];
    for name in new.iter().chain(&["style_extractor"]) {
        file.as_object_mut().unwrap().remove(*name);
    }
    file["version"] = 1.into();
    let read = Scores::from_json(&file.to_string()).unwrap();
    assert_eq!((read.style, read.kps_joint, read.facets.len()), (None, None, 0));
    assert_eq!(read.kps_no_token.n, scores.kps_no_token.n);
}

#[test]
fn the_same_images_and_seed_give_the_same_bytes() {
    let world = World::new(BLUE, GREEN, BLUE);
    assert_eq!(score(&world).to_json(), score(&world).to_json());
}

#[test]
fn a_baseline_gives_the_same_scores_and_leaves_the_adapted_images_to_measure() {
    let world = World::new(BLUE, GREEN, BLUE);
    let (evaluation, extractor) = (world.evaluation(), ByColour::new());
    let baseline = evaluation.baseline(by(&extractor)).unwrap();
    assert_eq!(extractor.images_measured(), 5);
    assert_eq!(evaluation.score_against(&baseline).unwrap().to_json(), score(&world).to_json());
    assert_eq!(extractor.images_measured(), 3);
}

/// A prompt that the baseline never measured is measured then.
#[test]
fn a_baseline_serves_an_evaluation_with_other_prompts_for_the_trigger() {
    let world = World::new(BLUE, GREEN, BLUE);
    let (mut evaluation, extractor) = (world.evaluation(), ByColour::new());
    let triggered = evaluation.with_trigger.clone();
    evaluation.with_trigger.clear();
    let baseline = evaluation.baseline(by(&extractor)).unwrap();
    evaluation.with_trigger = triggered;
    assert_eq!(evaluation.score_against(&baseline).unwrap().to_json(), score(&world).to_json());
}

#[test]
fn a_baseline_of_other_images_is_refused() {
    let world = World::new(BLUE, GREEN, BLUE);
    let mut evaluation = world.evaluation();
    let extractor = ByColour::new();
    let baseline = evaluation.baseline(by(&extractor)).unwrap();
    evaluation.without_trigger.pop();
    let error = evaluation.score_against(&baseline).unwrap_err();
    assert_eq!(error.to_string(), "base images and pairs differ in length: expected 2, found 1");
}

#[test]
fn every_listed_score_is_found_by_its_name_in_the_file() {
    let scores = score(&World::new(BLUE, GREEN, BLUE));
    let file: serde_json::Value = serde_json::from_str(&scores.to_json()).unwrap();
    for metric in &METRICS {
        let mean = metric.of(&scores).unwrap().mean;
        assert!((file[metric.name]["mean"].as_f64().unwrap() - mean).abs() < 1e-12, "{}", metric.name);
        assert_eq!(scores.named(metric.name).unwrap().mean, mean);
    }
}
