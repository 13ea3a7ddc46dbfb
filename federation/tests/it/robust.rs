//! Robust rules: what poisoned contributions can do, and what they cannot.

use catelier_adapters::Adapter;
use catelier_federation::{Contribution, Error, Problem, RankPolicy, Strategy as Aggregation, TargetRank, rejections};
use proptest::prelude::*;

use crate::adapters::{adapter, contribution, distance, norm, update, with_factor};

/// Honest clients around one update: one `down`, so that mixtures keep the rank.
fn honest(count: usize, seed: u64) -> Vec<Contribution> {
    let common = adapter(2, 2.0, seed);
    let client = |k: usize| {
        let own = with_factor(&adapter(2, 2.0, seed.wrapping_add(1 + k as u64)), "down", &common);
        contribution(&format!("honest {k}"), own, 1.0)
    };
    (0..count).map(client).collect()
}

/// Poisoned clients: any direction, at any size.
fn poisoned(count: usize, seed: u64, size: f64) -> Vec<Contribution> {
    let client = |k: usize| {
        let own = adapter(2, 2.0, seed.wrapping_mul(3).wrapping_add(k as u64)).scaled(size).unwrap();
        contribution(&format!("poisoned {k}"), own, 1.0)
    };
    (0..count).map(client).collect()
}

fn result(name: &str, clients: &[Contribution]) -> Vec<f64> {
    update(&named(name).aggregate(clients).unwrap().adapter)
}

fn named(name: &str) -> Aggregation {
    name.parse().unwrap()
}

fn updates(clients: &[Contribution]) -> Vec<Vec<f64>> {
    clients.iter().map(|client| update(&client.adapter)).collect()
}

/// Largest distance between two of the updates.
fn diameter(updates: &[Vec<f64>]) -> f64 {
    let pairs = updates.iter().flat_map(|one| updates.iter().map(move |other| distance(one, other)));
    pairs.fold(0.0, f64::max)
}

fn nearest(updates: &[Vec<f64>], found: &[f64]) -> f64 {
    updates.iter().map(|update| distance(update, found)).fold(f64::MAX, f64::min)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn elements_stay_between_the_honest_ones(seed in any::<u64>(), size in -1e4..1e4f64, bad in 0..4usize) {
        let good = honest(7 - bad, seed);
        let all = [good.clone(), poisoned(bad, seed, size)].concat();
        let own = updates(&good);
        let trimmed = Aggregation::TrimmedMean { cut: 0.45, rank: TargetRank::Exact };
        for strategy in [named("median:exact"), trimmed] {
            let found = update(&strategy.aggregate(&all).unwrap().adapter);
            for (element, value) in found.iter().enumerate() {
                let of_honest = || own.iter().map(|own| own[element]);
                let (low, high) = (of_honest().fold(f64::MAX, f64::min), of_honest().fold(f64::MIN, f64::max));
                prop_assert!(*value >= low - 1e-3 && *value <= high + 1e-3, "{strategy}: {low} {value} {high}");
            }
        }
    }

    #[test]
    fn krum_chooses_near_the_honest(seed in any::<u64>(), size in -1e4..1e4f64, bad in 1..3usize) {
        let count = 2 * bad + 3;
        let good = honest(count - bad, seed);
        let all = [good.clone(), poisoned(bad, seed, size)].concat();
        let (own, found) = (updates(&good), result(&format!("krum:{bad}"), &all));
        let (k, f) = (count as f64, bad as f64);
        let spread = diameter(&own);
        // From a chosen one to an honest one, from there to any; the cut to a rank at most doubles it.
        let bound = 2.0 * (((k - f - 2.0) / (k - 2.0 * f - 1.0)).sqrt() + 1.0) * spread;
        prop_assert!(nearest(&own, &found) <= bound, "{} {}", nearest(&own, &found), bound);
    }

    #[test]
    fn the_geometric_median_stays_near_the_honest(seed in any::<u64>(), size in -1e4..1e4f64, bad in 1..4usize) {
        let good = honest(7 - bad, seed);
        let all = [good.clone(), poisoned(bad, seed, size)].concat();
        let (own, found) = (updates(&good), result("geometric-median", &all));
        let share = bad as f64 / 7.0;
        let farthest = own.iter().map(|update| distance(&own[0], update)).fold(0.0, f64::max);
        let bound = 2.0 * 2.0 * (1.0 - share) / (1.0 - 2.0 * share) * farthest;
        prop_assert!(distance(&own[0], &found) <= bound, "{} {}", distance(&own[0], &found), bound);
    }

    #[test]
    fn a_bounded_norm_bounds_what_one_can_move(seed in any::<u64>(), size in -1e4..1e4f64) {
        let good = honest(6, seed);
        let largest = updates(&good).iter().map(|update| norm(update)).fold(0.0, f64::max);
        let one = [good.clone(), poisoned(1, seed, size)].concat();
        let other = [good, poisoned(1, seed.wrapping_add(1), -size)].concat();
        let [one, other] = [one, other].map(|clients| {
            // The cut to a rank is not what is bounded here.
            let strategy = named("norm-bound:1");
            (result("norm-bound:1", &clients), strategy.aggregate(&clients).unwrap().distance())
        });
        let cut = 2.0 * largest;
        prop_assert!(distance(&one.0, &other.0) <= 2.0 / 7.0 * largest + 2.0 * cut);
        prop_assert!(norm(&one.0) <= largest * (1.0 + 1e-4));
    }
}

#[test]
fn a_mean_follows_one_poisoned_client_and_robust_rules_do_not() {
    let good = honest(6, 3);
    let all = [good.clone(), poisoned(1, 3, 1e4)].concat();
    let farthest = diameter(&updates(&good));
    let away = |name: &str| nearest(&updates(&good), &result(name, &all)) / farthest;
    assert!(away("product") > 100.0);
    for name in ["median", "trimmed-mean", "krum:1", "geometric-median", "norm-bound"] {
        assert!(away(name) < 2.0, "{name}: {}", away(name));
    }
}

#[test]
fn krum_needs_enough_clients_for_its_promise() {
    let error = named("krum:2").aggregate(&honest(6, 1)).unwrap_err();
    assert!(matches!(error, Error::TooFew { needed: 7, found: 6, .. }), "{error}");
    assert!(error.hint().unwrap().contains("more clients"));
}

#[test]
fn norms_far_above_the_others_are_named() {
    let mut all = [honest(6, 1), poisoned(1, 1, 1e4)].concat();
    assert!(rejections(&all, RankPolicy::Mixed, None).unwrap().is_empty());
    let rejected = rejections(&all, RankPolicy::Mixed, Some(10.0)).unwrap();
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].client, "poisoned 0");
    assert!(matches!(rejected[0].problems[..], [Problem::Outlier { factor: 10.0, .. }]), "{:?}", rejected[0]);
    all[0].adapter = Adapter::new();
    let clients: Vec<_> =
        rejections(&all, RankPolicy::Mixed, Some(10.0)).unwrap().into_iter().map(|one| one.client).collect();
    assert_eq!(clients, ["honest 0", "poisoned 0"]);
}

#[test]
fn two_contributions_have_no_outlier() {
    let all = [honest(1, 1), poisoned(1, 1, 1e4)].concat();
    assert!(rejections(&all, RankPolicy::Mixed, Some(2.0)).unwrap().is_empty());
}
