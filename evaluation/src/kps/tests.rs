//! Laws of the scores, for any similarities and features.

use proptest::prelude::*;

use super::*;
use crate::similarity::{against, paired};

fn similarities() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(0.0..=1.0_f64, 1..24)
}

/// `count` features of width 6, none of them near zero.
fn features(count: usize) -> impl Strategy<Value = Vec<Vec<f32>>> {
    let feature =
        prop::collection::vec(-1.0..1.0_f32, 6).prop_filter("needs a direction", |f| f.iter().any(|v| v.abs() > 0.1));
    prop::collection::vec(feature, count)
}

fn joint_of(parts: [f64; 3]) -> f64 {
    let [style, content, preservation] = parts.map(|mean| Score { mean, low: mean, high: mean, n: 1 });
    kps_joint(&style, &content, &preservation).mean
}

fn within_unit(score: &Score) -> bool {
    0.0 <= score.low && score.low <= score.mean + 1e-12 && score.mean <= score.high + 1e-12 && score.high <= 1.0 + 1e-12
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn kps_and_its_interval_lie_between_zero_and_one(values in similarities()) {
        let score = kps_no_token(&values, 7).unwrap();
        prop_assert!(within_unit(&score), "{score:?}");
        prop_assert_eq!(score.n, values.len());
    }

    #[test]
    fn kps_is_never_above_the_arithmetic_mean(values in similarities()) {
        let score = kps_no_token(&values, 7).unwrap();
        prop_assert!(score.mean <= mean(&values) + 1e-12);
    }

    #[test]
    fn the_order_of_images_does_not_matter(
        (values, shuffled) in similarities()
            .prop_flat_map(|values| (Just(values.clone()), Just(values).prop_shuffle())),
    ) {
        prop_assert_eq!(kps_no_token(&values, 3).unwrap(), kps_no_token(&shuffled, 3).unwrap());
    }

    #[test]
    fn identical_images_reach_the_maximum(images in features(5)) {
        let score = kps_no_token(&paired(&images, &images).unwrap(), 1).unwrap();
        prop_assert_eq!((score.mean, score.low, score.high), (1.0, 1.0, 1.0));
    }

    #[test]
    fn an_adapter_that_does_nothing_keeps_all_and_loses_on_identity(
        base in features(4),
        references in features(1),
    ) {
        let kept = kps_no_token(&paired(&base, &base).unwrap(), 1).unwrap();
        let nothing = identity(&against(&base, &references).unwrap(), 1).unwrap();
        let copied = identity(&against(&references, &references).unwrap(), 1).unwrap();
        prop_assert_eq!(kept.mean, 1.0);
        prop_assert!(nothing.mean < 1.0);
        prop_assert_eq!(copied.mean, 1.0);
        prop_assert_eq!(style(&against(&base, &references).unwrap(), 1).unwrap(), nothing);
    }

    #[test]
    fn the_joint_score_lies_between_its_parts_and_rises_with_each(
        parts in prop::array::uniform3(0.05..0.9_f64),
        risen in 0..3_usize,
    ) {
        let joint = joint_of(parts);
        let (least, most) = (parts.iter().copied().fold(1.0, f64::min), parts.iter().copied().fold(0.0, f64::max));
        prop_assert!(least - 1e-12 <= joint && joint <= most + 1e-12);
        prop_assert!(joint <= 3.0 * least, "low when any one is");
        let mut better = parts;
        better[risen] += 0.1;
        prop_assert!(joint_of(better) > joint);
    }

    #[test]
    fn collapse_is_zero_for_unchanged_images_and_changes_sign_when_exchanged(
        adapted in features(5),
        base in features(5),
    ) {
        prop_assert_eq!(collapse(&base, &base, 1).unwrap().mean, 0.0);
        let there = collapse(&adapted, &base, 1).unwrap().mean;
        let back = collapse(&base, &adapted, 1).unwrap().mean;
        prop_assert!((there + back).abs() < 1e-12);
    }
}

#[test]
fn kps_is_the_harmonic_mean_by_hand() {
    // 3 / (1/0.5 + 1/0.8 + 1/1) = 3 / 4.25
    let score = kps_no_token(&[0.5, 0.8, 1.0], 0).unwrap();
    assert!((score.mean - 3.0 / 4.25).abs() < 1e-12);
    assert!(score.low >= 0.5 && score.low < score.mean && score.mean < score.high);
}

#[test]
fn one_opposite_image_ruins_the_score_without_breaking_it() {
    let score = kps_no_token(&[1.0, 1.0, 0.0], 0).unwrap();
    assert!(score.mean > 0.0 && score.mean < 1e-8, "{score:?}");
    assert!(score.low.is_finite() && score.high <= 1.0);
}

#[test]
fn whoever_lacks_one_of_the_three_loses_on_the_joint_score() {
    let learner = joint_of([0.8, 0.9, 0.9]);
    for lacks_one in [[0.0, 1.0, 1.0], [1.0, 0.1, 1.0], [1.0, 1.0, 0.2]] {
        assert!(joint_of(lacks_one) < learner - 0.3, "{lacks_one:?}");
    }
    // 3 / (1/0.5 + 1/0.8 + 1/1) = 3 / 4.25
    assert!((joint_of([0.5, 0.8, 1.0]) - 3.0 / 4.25).abs() < 1e-12);
}

#[test]
fn pair_similarity_by_hand() {
    // Perpendicular twice (0.5), the same once (1.0).
    let score = pair_similarity(&[[1.0_f32, 0.0], [0.0, 1.0], [0.0, 2.0]], 0).unwrap();
    assert!((score.mean - 2.0 / 3.0).abs() < 1e-12);
    assert!(pair_similarity(&[[1.0_f32, 0.0]], 0).is_err());
}

#[test]
fn collapse_by_hand() {
    // Base images perpendicular (0.5), adapted ones the same (1.0).
    let base = [[1.0_f32, 0.0], [0.0, 1.0]];
    let adapted = [[1.0_f32, 1.0], [2.0, 2.0]];
    let score = collapse(&adapted, &base, 0).unwrap();
    assert!((score.mean - 0.5).abs() < 1e-12);
}

#[test]
fn the_ruined_class_comes_first_although_the_average_is_fair() {
    let labels = [Some("house"), Some("boat"), Some("house"), Some("boat"), None];
    let groups = by_group(&labels, &[0.98, 0.6, 0.96, 0.7, 0.1], 0).unwrap();
    let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["boat", "house"]);
    assert_eq!(groups[0].worst, 0.6);
    assert!((groups[0].drop - (1.0 - 2.0 / (1.0 / 0.6 + 1.0 / 0.7))).abs() < 1e-12);
}

#[test]
fn scores_of_nothing_and_values_out_of_range_are_errors() {
    assert!(kps_no_token(&[], 0).is_err());
    assert!(kps_no_token(&[1.2], 0).is_err());
    assert!(kps_no_token(&[f64::NAN], 0).is_err());
    assert!(identity(&[vec![]], 0).is_err());
    assert!(prompt_similarity(&[-1.5], 0).is_err());
    assert!(collapse(&[[1.0_f32, 0.0]], &[[1.0_f32, 0.0]], 0).is_err());
    assert!(by_group(&[None], &[0.5, 0.5], 0).is_err());
}

#[test]
fn identity_averages_references_within_a_image_and_counts_images() {
    let score = identity(&[vec![0.2, 0.4], vec![0.6, 0.8]], 0).unwrap();
    assert!((score.mean - 0.5).abs() < 1e-12);
    assert_eq!(score.n, 2);
}
