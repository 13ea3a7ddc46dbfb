//! EWWA-FL: two rounds that were computed independently from the paper's and the released code's equations, and laws.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::Adapter;
use catelier_federation::{
    Contribution, ContributionSign, Error, Ewwa, EwwaForm, Memory, Moments, NamedTensors, Placement,
    Strategy as Aggregation,
};
use proptest::prelude::*;

use crate::adapters::{MODULES, adapter, contribution, distance, norm, tensors, update, values, with_factor};

const START: [f64; 3] = [0.5, -0.2, 0.1];
const ROUNDS: [[[f64; 3]; 3]; 2] = [
    [[0.4, -0.1, 0.1], [0.55, -0.25, 0.3], [0.2, -0.2, 0.12]],
    [[0.35, -0.12, 0.15], [0.45, -0.3, 0.2], [0.3, -0.1, 0.1]],
];

fn model(values: &[f64]) -> NamedTensors {
    BTreeMap::from([("w".to_owned(), Tensor::new(values, &Device::Cpu).unwrap())])
}

fn replies(round: &[[f64; 3]]) -> BTreeMap<String, NamedTensors> {
    round.iter().enumerate().map(|(index, values)| (format!("client {index}"), model(values))).collect()
}

fn two_rounds(settings: Ewwa) -> [Vec<f64>; 2] {
    let (first, memory) = settings.step(&model(&START), &replies(&ROUNDS[0]), &Memory::new()).unwrap();
    let (second, _) = settings.step(&first, &replies(&ROUNDS[1]), &memory).unwrap();
    [first, second].map(|global| values(&global["w"]))
}

#[track_caller]
fn close(found: &[f64], expected: [f64; 3]) {
    let close = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6);
    assert!(close, "{found:?} {expected:?}");
}

#[test]
fn two_rounds_of_the_papers_form() {
    let [first, second] = two_rounds(Ewwa::default());
    close(&first, [0.315845, -0.224259, 0.146627]);
    close(&second, [0.334097, -0.254393, 0.127566]);
}

#[test]
fn two_rounds_of_the_released_form() {
    let [first, second] = two_rounds(Ewwa { form: EwwaForm::SharedLog, ..Ewwa::default() });
    close(&first, [0.369286, -0.224470, 0.100128]);
    close(&second, [0.365142, -0.201158, 0.131005]);
}

/// In a client's first round Adam and Yogi see the sign of the change alone. Adagrad's sum is corrected as if it were a
/// mean, which makes its first contributions 31.6 times smaller.
#[test]
fn first_rounds_of_adam_and_yogi_are_alike_and_second_ones_are_not() {
    let of = |moments| two_rounds(Ewwa { moments, ..Ewwa::default() });
    let ([adam, adam_second], [yogi, yogi_second]) = (of(Moments::Adam), of(Moments::Yogi));
    assert!(distance(&adam, &yogi) < 1e-12);
    assert!(distance(&adam_second, &yogi_second) > 1e-6);
    assert!(distance(&adam, &of(Moments::Adagrad)[0]) > 1e-3);
}

#[test]
fn magnitudes_alone_do_not_prefer_a_sign() {
    let settings = Ewwa { contribution: ContributionSign::Magnitude, ..Ewwa::default() };
    let mirrored = |values: &NamedTensors| -> NamedTensors {
        values.iter().map(|(name, tensor)| (name.clone(), tensor.neg().unwrap())).collect()
    };
    let round = replies(&ROUNDS[0]);
    let (one, _) = settings.step(&model(&START), &round, &Memory::new()).unwrap();
    let turned = round.iter().map(|(name, values)| (name.clone(), mirrored(values))).collect();
    let (other, _) = settings.step(&mirrored(&model(&START)), &turned, &Memory::new()).unwrap();
    assert!(distance(&values(&one["w"]), &values(&mirrored(&other)["w"])) < 1e-12);
    let (signed, _) = Ewwa::default().step(&model(&START), &round, &Memory::new()).unwrap();
    let (turned_signed, _) = Ewwa::default().step(&mirrored(&model(&START)), &turned, &Memory::new()).unwrap();
    assert!(distance(&values(&signed["w"]), &values(&mirrored(&turned_signed)["w"])) > 1e-2);
}

#[test]
fn rounds_are_counted_by_client() {
    let settings = Ewwa::default();
    let all = replies(&ROUNDS[0]);
    let late = |(name, _): &(String, NamedTensors)| name != "client 2";
    let early: BTreeMap<_, _> = all.clone().into_iter().filter(late).collect();
    let (_, memory) = settings.step(&model(&START), &early, &Memory::new()).unwrap();
    let (_, memory) = settings.step(&model(&START), &all, &memory).unwrap();
    assert_eq!((memory.count("ewwa/client 0"), memory.count("ewwa/client 2")), (2, 1));
    assert_eq!(memory.element_count(), 3 * 2 * 3);
}

#[test]
fn whole_models_keep_their_integers_and_average_their_statistics() {
    let with = |mean: f64, count: u32| {
        let mut model = model(&[mean]);
        model.insert("norm.running_mean".into(), Tensor::new(&[mean], &Device::Cpu).unwrap());
        model.insert("steps".into(), Tensor::new(&[count], &Device::Cpu).unwrap());
        model
    };
    let replies = BTreeMap::from([("a".to_owned(), with(1.0, 8)), ("b".to_owned(), with(4.0, 9))]);
    let (model, _) = Ewwa::default().step(&with(2.0, 7), &replies, &Memory::new()).unwrap();
    assert_eq!(model["steps"].to_vec1::<u32>().unwrap(), [7]);
    assert!((values(&model["norm.running_mean"])[0] - 2.5).abs() < 1e-12);
    assert_eq!(model["w"].dtype(), DType::F64);
}

#[test]
fn tensors_and_memories_of_other_models_are_refused_by_name() {
    let other = BTreeMap::from([("a".to_owned(), model(&[1.0]))]);
    let error = Ewwa::default().step(&model(&START), &other, &Memory::new()).unwrap_err();
    assert!(error.to_string().contains("`w`"), "{error}");
    let (_, memory) = Ewwa::default().step(&model(&START), &replies(&ROUNDS[0]), &Memory::new()).unwrap();
    let smaller = BTreeMap::from([("client 0".to_owned(), model(&[1.0]))]);
    let error = Ewwa::default().step(&model(&[0.5]), &smaller, &memory).unwrap_err();
    assert!(matches!(error, Error::Memory { expected: 1, found: 3, .. }), "{error}");
}

#[test]
fn every_client_with_nan_is_named() {
    let mut all = replies(&ROUNDS[0]);
    for client in ["client 0", "client 2"] {
        all.insert(client.to_owned(), model(&[0.1, f64::NAN, 0.2]));
    }
    let error = Ewwa::default().step(&model(&START), &all, &Memory::new()).unwrap_err().to_string();
    assert!(error.contains("2 of 3") && error.contains("`client 0`") && error.contains("`client 2`"), "{error}");
}

fn settings() -> impl Strategy<Value = Ewwa> {
    let moments = prop_oneof![Just(Moments::Adam), Just(Moments::Adagrad), Just(Moments::Yogi)];
    let form = prop_oneof![Just(EwwaForm::Softmax), Just(EwwaForm::SharedLog)];
    let sign = prop_oneof![Just(ContributionSign::Signed), Just(ContributionSign::Magnitude)];
    (moments, form, sign, 1..30u32).prop_map(|(moments, form, contribution, tenths)| Ewwa {
        moments,
        form,
        contribution,
        alpha: f64::from(tenths) / 10.0,
    })
}

fn clients(global: &Adapter, seeds: &[u64]) -> Vec<Contribution> {
    let client = |(index, seed): (usize, &u64)| {
        let own = with_factor(&adapter(2, 3.0, *seed), "down", global);
        contribution(&format!("client {index}"), own, 1.0 + index as f64)
    };
    seeds.iter().enumerate().map(client).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_element_stays_between_the_clients(
        settings in settings(),
        seeds in proptest::collection::vec(any::<u64>(), 1..5),
        rounds in 1..4usize,
    ) {
        let strategy = Aggregation::Ewwa { settings, placement: Placement::Factors };
        let (mut global, mut memory) = (adapter(2, 3.0, 99), Memory::new());
        for round in 1..=rounds {
            let clients: Vec<_> = seeds
                .iter()
                .enumerate()
                .map(|(k, seed)| contribution(&format!("client {k}"), adapter(2, 3.0, seed.wrapping_add(round as u64)), 1.0))
                .collect();
            let (aggregate, kept) = strategy.step(round, Some(&global), &clients, &memory).unwrap();
            let own: Vec<_> = clients.iter().map(|client| tensors(&client.adapter)).collect();
            for (index, (name, found)) in tensors(&aggregate.adapter).iter().enumerate() {
                for (element, value) in found.iter().enumerate() {
                    let of_clients = || own.iter().map(|own| own[index].1[element]);
                    let (low, high) = (of_clients().fold(f64::MAX, f64::min), of_clients().fold(f64::MIN, f64::max));
                    prop_assert!((low..=high).contains(value), "{} {}: {} {} {}", name, element, low, value, high);
                }
            }
            (global, memory) = (aggregate.adapter, kept);
        }
    }

    #[test]
    fn a_product_is_a_step_on_the_updates(seeds in proptest::collection::vec(any::<u64>(), 2..5)) {
        let global = adapter(2, 3.0, 5);
        let clients = clients(&global, &seeds);
        let strategy = Aggregation::Ewwa { settings: Ewwa::default(), placement: Placement::Product };
        // Clients and global share one `down`, but element-wise weights of the updates have any rank.
        let (aggregate, memory) = strategy.step(1, Some(&global), &clients, &Memory::new()).unwrap();
        let mut expected = Vec::new();
        for (path, ..) in MODULES {
            let dense = |adapter: &Adapter| {
                let delta = adapter.get(path).unwrap().low_rank().delta().unwrap();
                BTreeMap::from([("w".to_owned(), delta)])
            };
            let replies = clients.iter().map(|c| (c.client.clone(), dense(&c.adapter))).collect();
            let (stepped, _) = Ewwa::default().step(&dense(&global), &replies, &Memory::new()).unwrap();
            expected.extend(values(&stepped["w"]));
        }
        let found = update(&aggregate.adapter);
        prop_assert!(norm(&found) <= norm(&expected) * (1.0 + 1e-4));
        prop_assert_eq!(memory.count("ewwa/client 0"), 1);
        // Cut to rank 2: the rest is orthogonal to what is kept.
        let rest: Vec<f64> = expected.iter().zip(&found).map(|(a, b)| a - b).collect();
        let inner: f64 = rest.iter().zip(&found).map(|(a, b)| a * b).sum();
        prop_assert!(inner.abs() < 1e-3 * (1.0 + norm(&expected).powi(2)), "{}", inner);
    }
}
