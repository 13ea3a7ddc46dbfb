//! Clipping, noise, and the accountant.

use catelier_federation::{Accountant, Error, Memory, NoiseAt, Privacy, Roles, RoundPlan, Strategy, Weighting};

use crate::adapters::{adapter, contribution, tensors, with_factor};

fn privacy(clip: f64, noise: f64, at: NoiseAt) -> Privacy {
    Privacy { clip, noise, at, seed: 11 }
}

/// All values but the alphas.
fn factors(adapter: &catelier_adapters::Adapter) -> Vec<f64> {
    tensors(adapter).into_iter().filter(|(name, _)| !name.ends_with("alpha")).flat_map(|(_, values)| values).collect()
}

fn change(one: &catelier_adapters::Adapter, other: &catelier_adapters::Adapter) -> f64 {
    crate::adapters::distance(&factors(one), &factors(other))
}

#[test]
fn changes_are_shortened_to_the_norm_and_short_ones_stay() {
    let (own, global) = (adapter(2, 2.0, 1), adapter(2, 2.0, 2));
    for clip in [0.1, 1.0, 5.0] {
        let clipped = privacy(clip, 0.0, NoiseAt::Client).clipped(&own, Some(&global), &Roles::shared()).unwrap();
        let length = change(&clipped, &global);
        assert!(length <= clip && length > 0.999 * clip, "{clip}: {length}");
    }
    let loose = privacy(1e6, 0.0, NoiseAt::Client).clipped(&own, Some(&global), &Roles::shared()).unwrap();
    assert_eq!(tensors(&loose), tensors(&own));
}

#[test]
fn noise_has_its_deviation_and_comes_from_the_seed() {
    let (own, roles) = (adapter(3, 3.0, 1), Roles::shared());
    let privacy = privacy(1.0, 2.0, NoiseAt::Client);
    let (mut square, mut count) = (0.0, 0);
    for round in 1..200 {
        let sent = privacy.protect(&own, Some(&own), &roles, round, "ada").unwrap();
        square += change(&sent, &own).powi(2);
        count += factors(&own).len();
    }
    let deviation = (square / f64::from(u32::try_from(count).unwrap())).sqrt();
    assert!((deviation - 2.0).abs() < 0.05, "{deviation}");
    let sent = |client: &str, round| tensors(&privacy.protect(&own, None, &roles, round, client).unwrap());
    assert_eq!(sent("ada", 1), sent("ada", 1));
    assert!(sent("ada", 1) != sent("ben", 1) && sent("ada", 1) != sent("ada", 2));
}

#[test]
fn frozen_tensors_get_no_noise() {
    let global = adapter(2, 2.0, 1);
    let own = with_factor(&adapter(2, 2.0, 2), "down", &global);
    let roles = Strategy::Ffa.configure(1, &catelier_federation::State::starting_from(global.clone())).unwrap().roles;
    let sent = privacy(1.0, 2.0, NoiseAt::Client).protect(&own, Some(&global), &roles, 1, "ada").unwrap();
    for ((name, sent), (_, common)) in tensors(&sent).into_iter().zip(tensors(&global)) {
        assert_eq!(name.ends_with("up"), sent != common, "{name}");
    }
}

/// Noise on the server shrinks with the number of clients.
#[test]
fn the_servers_noise_covers_one_clients_part_of_the_mean() {
    let (mean, roles) = (adapter(3, 3.0, 1), Roles::shared());
    let central = privacy(1.0, 2.0, NoiseAt::Server);
    let square: f64 =
        (1..200).map(|round| change(&central.cover(&mean, &roles, round, 8).unwrap(), &mean).powi(2)).sum();
    let deviation = (square / (199.0 * factors(&mean).len() as f64)).sqrt();
    assert!((deviation - 2.0 / 8.0).abs() < 0.01, "{deviation}");
}

#[test]
fn central_noise_is_for_uniform_means_of_tensors() {
    let plan = |strategy: &str, weighting| RoundPlan {
        strategy: strategy.parse().unwrap(),
        weighting,
        privacy: Some(privacy(1.0, 1.0, NoiseAt::Server)),
        ..RoundPlan::default()
    };
    assert!(plan("fedavg", Weighting::Uniform).validate().is_ok());
    for (strategy, weighting) in [("product", Weighting::Uniform), ("fedavg", Weighting::Examples)] {
        let error = plan(strategy, weighting).validate().unwrap_err();
        assert!(matches!(error, Error::Incompatible { .. }), "{error}");
        assert!(error.to_string().contains(strategy) && error.hint().is_some(), "{error}");
    }
    let local = RoundPlan { privacy: Some(privacy(1.0, 1.0, NoiseAt::Client)), ..plan("product", Weighting::Examples) };
    assert!(local.validate().is_ok());
}

#[test]
fn a_plan_adds_the_servers_noise_once() {
    let clients: Vec<_> = (0..4).map(|k| contribution(&format!("client {k}"), adapter(2, 2.0, k), 1.0)).collect();
    let quiet = RoundPlan { strategy: Strategy::Fedavg, weighting: Weighting::Uniform, ..RoundPlan::default() };
    let noisy = RoundPlan { privacy: Some(privacy(1.0, 0.4, NoiseAt::Server)), ..quiet.clone() };
    let of = |plan: &RoundPlan| plan.aggregate(1, None, &clients, &Memory::new()).unwrap().0.adapter;
    let (quiet, noisy) = (of(&quiet), of(&noisy));
    let deviation = change(&quiet, &noisy) / (factors(&quiet).len() as f64).sqrt();
    assert!((deviation - 0.1).abs() < 0.02, "{deviation}");
}

/// What starts afresh has changed since zero, even beside a global adapter of the same shapes.
#[test]
fn a_fresh_start_is_clipped_since_zero() {
    let (own, global) = (adapter(2, 2.0, 1), adapter(2, 2.0, 2));
    let plan = RoundPlan {
        strategy: "flora".parse().unwrap(),
        privacy: Some(privacy(0.5, 0.0, NoiseAt::Client)),
        ..RoundPlan::default()
    };
    let state = catelier_federation::State::starting_from(global.clone());
    let instructions = plan.configure(1, &state).unwrap();
    let sent = plan.at_the_border(&instructions, contribution("ada", own, 1.0), Some(&global)).unwrap().unwrap();
    assert!((crate::adapters::norm(&factors(&sent.adapter)) - 0.5).abs() < 1e-4);
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    for (clip, noise) in [(0.0, 1.0), (f64::NAN, 1.0), (1.0, -1.0), (1.0, f64::INFINITY)] {
        assert!(matches!(privacy(clip, noise, NoiseAt::Client).validate(), Err(Error::Setting { .. })));
    }
    let mut accountant = Accountant::new();
    assert!(accountant.add(0.0, 1.0, 1).is_err() && accountant.add(1.0, 0.0, 1).is_err());
    assert!(accountant.add(1.0, 1.1, 1).is_err() && accountant.epsilon(0.0).is_err());
    assert_eq!(accountant.epsilon(1e-5).unwrap(), 0.0);
}

/// Values of dp-accounting 0.6.0 (`RdpAccountant`, neighbours by adding or removing), on its own orders without
/// sampling, and on the whole ones of them with it.
#[test]
fn epsilons_are_those_of_another_accountant() {
    let cases = [
        (1.0, 1.0, 1, 1e-5, 4.728_507_067_2),
        (4.0, 1.0, 50, 1e-5, 9.234_958_991_7),
        (2.0, 1.0, 10, 1e-6, 8.846_874_358_5),
        (1.1, 256.0 / 60_000.0, 14_062, 1e-5, 2.596_981_178_6),
        (1.3, 250.0 / 60_000.0, 3_600, 1e-5, 0.942_200_218_2),
        (0.8, 0.1, 20, 1e-5, 6.702_862_261_6),
        (1.0, 0.5, 100, 1e-3, 41.258_862_868_7),
    ];
    for (noise, sampling, rounds, delta, expected) in cases {
        let mut accountant = Accountant::new();
        accountant.add(noise, sampling, rounds).unwrap();
        let epsilon = accountant.epsilon(delta).unwrap();
        assert!((epsilon - expected).abs() < 1e-6, "{noise} {sampling} {rounds}: {epsilon} {expected}");
    }
}

#[test]
fn rounds_add_up_and_more_noise_is_worth_more() {
    let epsilon = |parts: &[(f64, usize)]| {
        let mut accountant = Accountant::new();
        parts.iter().for_each(|(noise, rounds)| accountant.add(*noise, 1.0, *rounds).unwrap());
        accountant.epsilon(1e-5).unwrap()
    };
    assert!((epsilon(&[(2.0, 10)]) - epsilon(&[(2.0, 4), (2.0, 6)])).abs() < 1e-9);
    assert!(epsilon(&[(2.0, 10)]) > epsilon(&[(4.0, 10)]));
    assert!(epsilon(&[(2.0, 10), (4.0, 1)]) > epsilon(&[(2.0, 10)]));
}
