//! Laws of all strategies.

use candle_core::{DType, Tensor};
use catelier_adapters::Adapter;
use catelier_federation::{
    Aggregate, Contribution, Contributions, Error, InMemory, Memory, Role, State, Strategy as Aggregation, TargetRank, fedex, leading_slices,
};
use catelier_numerics::linalg::truncated_svd;
use proptest::prelude::*;

use crate::adapters::{
    MODULES, adapter, contribution, distance, dora, mean_update, norm, rotated, tensors, update, values, with_factor,
};

/// Clients of one rank and alpha, at least three.
pub(crate) fn alike() -> impl Strategy<Value = Vec<Contribution>> {
    (1..4usize, 1..20u32, proptest::collection::vec((any::<u64>(), 1..50u32), 3..7)).prop_map(
        |(rank, alpha, clients)| {
            let client = |(index, (seed, weight)): (usize, (u64, u32))| {
                let adapter = adapter(rank, f64::from(alpha) / 4.0, seed);
                contribution(&format!("client {index}"), adapter, f64::from(weight))
            };
            clients.into_iter().enumerate().map(client).collect()
        },
    )
}

pub(crate) fn named(name: &str) -> Aggregation {
    name.parse().unwrap()
}

/// Strategies that aggregate contributions by themselves, for clients of one rank and at least three.
pub(crate) const WITHOUT_START: [&str; 15] = [
    "fedavg",
    "product",
    "product:exact",
    "flora",
    "fedex",
    "fair",
    "fedrot",
    "fedrot:1",
    "hetlora",
    "raflora",
    "median:exact",
    "trimmed-mean",
    "krum:0",
    "geometric-median",
    "norm-bound",
];

/// Strategies that go on from a global adapter.
pub(crate) const WITH_START: [&str; 9] = [
    "ffa",
    "rolora",
    "fedsa",
    "ewwa-adam",
    "ewwa-yogi:factors",
    "ewwa-adagrad:product",
    "ewwa-released",
    "fedadam",
    "fedyogi",
];

fn aggregated(name: &str, clients: &[Contribution], global: Option<&Adapter>) -> Aggregate {
    named(name).step(1, global, clients, &Memory::new()).unwrap_or_else(|error| panic!("{name}: {error:?}")).0
}

fn whole(name: &str, clients: &[Contribution]) -> Vec<f64> {
    update(&named(name).aggregate(clients).unwrap().adapter)
}

/// A global adapter of the clients' shapes, and the clients with the factor that is frozen or kept in round 1.
fn from_start(name: &str, clients: &[Contribution], seed: u64) -> (Adapter, Vec<Contribution>) {
    let first = &clients[0].adapter;
    let global = adapter(first.uniform_rank().unwrap(), first.uniform_alpha().unwrap(), seed);
    let state = State::starting_from(global.clone());
    let roles = named(name).configure(1, &state).unwrap().roles;
    let started = |client: &Contribution| {
        let mut own = client.adapter.clone();
        for (factor, role) in [("down", roles.down), ("up", roles.up)] {
            if role != Role::Shared {
                own = with_factor(&own, factor, &global);
            }
        }
        contribution(&client.client, own, client.weight)
    };
    let clients = clients.iter().map(started).collect();
    (global, clients)
}

fn bits(adapter: &Adapter) -> Vec<u64> {
    tensors(adapter).into_iter().flat_map(|(_, values)| values).map(f64::to_bits).collect()
}

fn rotate_all(clients: &[Contribution], seed: u64) -> Vec<Contribution> {
    let turned = |(index, client): (usize, &Contribution)| {
        contribution(&client.client, rotated(&client.adapter, seed.wrapping_add(index as u64)), client.weight)
    };
    clients.iter().enumerate().map(turned).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equal_replies_average_to_themselves(clients in alike(), seed in any::<u64>()) {
        let equal = |clients: &[Contribution]| -> Vec<Contribution> {
            clients.iter().map(|c| contribution(&c.client, clients[0].adapter.clone(), c.weight)).collect()
        };
        for name in WITHOUT_START {
            let clients = equal(&clients);
            let expected = update(&clients[0].adapter);
            prop_assert!(distance(&whole(name, &clients), &expected) < 1e-5 * (1.0 + norm(&expected)), "{}", name);
        }
        for name in WITH_START.iter().filter(|name| !name.starts_with("fed") || **name == "fedsa") {
            let (global, clients) = from_start(name, &clients, seed);
            let clients = equal(&clients);
            let (expected, found) = (update(&clients[0].adapter), update(&aggregated(name, &clients, Some(&global)).adapter));
            prop_assert!(distance(&found, &expected) < 1e-5 * (1.0 + norm(&expected)), "{}", name);
        }
    }

    #[test]
    fn order_of_clients_and_size_of_weights_are_irrelevant_to_the_bit(clients in alike(), seed in any::<u64>()) {
        for name in WITHOUT_START.iter().chain(&WITH_START) {
            let (global, clients) = from_start_if_needed(name, &clients, seed);
            let mut turned: Vec<_> =
                clients.iter().map(|c| contribution(&c.client, c.adapter.clone(), 4.0 * c.weight)).collect();
            turned.rotate_left(1);
            turned.reverse();
            let one = aggregated(name, &clients, global.as_ref());
            let other = aggregated(name, &turned, global.as_ref());
            prop_assert_eq!(bits(&one.adapter), bits(&other.adapter), "{}", name);
        }
    }

    #[test]
    fn rotations_of_factors_change_nothing_in_exact_and_robust_rules(clients in alike(), seed in any::<u64>()) {
        let turned = rotate_all(&clients, seed);
        for name in ["product:exact", "flora", "fedex", "median:exact"] {
            let (one, other) = (whole(name, &clients), whole(name, &turned));
            prop_assert!(distance(&one, &other) < 1e-5 * (1.0 + norm(&one)), "{}", name);
        }
        // Where the result is cut, the cut is compared: nearly equal singular values may change places.
        for name in ["product", "trimmed-mean", "krum:0", "geometric-median", "norm-bound"] {
            let [one, other] = [&clients, &turned].map(|clients| named(name).aggregate(clients).unwrap().distance());
            prop_assert!((one.absolute - other.absolute).abs() < 1e-4 * (1.0 + one.mean_norm), "{}", name);
        }
        let first = &clients[0].adapter;
        let global = adapter(first.uniform_rank().unwrap(), first.uniform_alpha().unwrap(), seed);
        let [one, other] =
            [&clients, &turned].map(|clients| update(&aggregated("fedrot:1", clients, Some(&global)).adapter));
        prop_assert!(distance(&one, &other) < 1e-4 * (1.0 + norm(&one)));
    }

    #[test]
    fn exact_rules_are_the_mean_of_the_updates(clients in alike(), seed in any::<u64>()) {
        let mean = mean_update(&clients);
        for name in ["product:exact", "flora", "fedex"] {
            prop_assert!(distance(&whole(name, &clients), &mean) < 1e-5 * (1.0 + norm(&mean)), "{}", name);
        }
        for (name, round) in [("ffa", 1), ("rolora", 1), ("rolora", 2)] {
            let factor = if round == 1 { "down" } else { "up" };
            let global = adapter(clients[0].adapter.uniform_rank().unwrap(), clients[0].adapter.uniform_alpha().unwrap(), seed);
            let clients: Vec<_> = clients
                .iter()
                .map(|c| contribution(&c.client, with_factor(&c.adapter, factor, &global), c.weight))
                .collect();
            let (mean, found) = (mean_update(&clients), named(name).step(round, Some(&global), &clients, &Memory::new()).unwrap());
            prop_assert!(distance(&update(&found.0.adapter), &mean) < 1e-5 * (1.0 + norm(&mean)), "{}", name);
            for (path, ..) in MODULES {
                let tensor = |adapter: &Adapter| values(adapter.get(path).unwrap().get(factor).unwrap());
                prop_assert_eq!(tensor(&found.0.adapter), tensor(&global));
            }
        }
    }

    #[test]
    fn the_error_of_a_cut_is_the_energy_of_the_tail(clients in alike(), rank in 1..4usize) {
        let strategy = Aggregation::Product { rank: TargetRank::Fixed(rank), alpha: None };
        let aggregate = strategy.aggregate(&clients).unwrap();
        let mean = catelier_adapters::sum(&{
            let total: f64 = clients.iter().map(|c| c.weight).sum();
            clients.iter().map(|c| (&c.adapter, c.weight / total)).collect::<Vec<_>>()
        }).unwrap();
        for (path, ..) in MODULES {
            let delta = mean.get(path).unwrap().low_rank().delta().unwrap();
            let dense = delta.flatten_from(1).unwrap().to_dtype(DType::F64).unwrap();
            let singular = truncated_svd(&dense, 1).unwrap().singular_values;
            let tail: f64 = singular.iter().skip(rank).map(|value| value * value).sum();
            let reached = aggregate.distances[path].absolute.powi(2);
            prop_assert!((reached - tail).abs() < 1e-4 * (1.0 + singular[0] * singular[0]), "{} {}", reached, tail);
        }
    }

    #[test]
    fn a_corrected_up_is_no_further_than_fedavg(clients in alike()) {
        let distance_of = |name: &str| named(name).aggregate(&clients).unwrap().distance();
        let (fedavg, fair) = (distance_of("fedavg"), distance_of("fair:0.000001"));
        prop_assert!(fair.absolute <= fedavg.absolute + 1e-4 * (1.0 + fedavg.mean_norm));
        let large = distance_of("fair:1000000000");
        prop_assert!((large.absolute - fedavg.absolute).abs() < 1e-4 * (1.0 + fedavg.mean_norm));
    }

    #[test]
    fn mixed_ranks_of_one_rank_are_fedavg(clients in alike()) {
        let [slices, fedavg] = ["raflora", "fedavg"].map(|name| whole(name, &clients));
        prop_assert!(distance(&slices, &fedavg) < 1e-5 * (1.0 + norm(&fedavg)));
    }

    #[test]
    fn the_residual_is_what_the_means_miss(clients in alike()) {
        let source = InMemory::new(&clients);
        let result = fedex(&Contributions::read(&source).unwrap()).unwrap();
        let mean = mean_update(&clients);
        let missed: Vec<f64> = mean.iter().zip(update(&result.adapter)).map(|(mean, found)| mean - found).collect();
        prop_assert!(distance(&update(&result.residual), &missed) < 1e-5 * (1.0 + norm(&mean)));
        prop_assert_eq!(bits(&result.adapter), bits(&named("fedavg").aggregate(&clients).unwrap().adapter));
    }
}

pub(crate) fn from_start_if_needed(name: &str, clients: &[Contribution], seed: u64) -> (Option<Adapter>, Vec<Contribution>) {
    if named(name).needs_start() {
        let (global, clients) = from_start(name, clients, seed);
        (Some(global), clients)
    } else {
        (None, clients.to_vec())
    }
}

/// Rotations of the clients' factors change these rules' results by these parts of their norms; the README has the
/// figures.
#[test]
fn inexact_rules_depend_on_the_basis_of_the_factors() {
    let figures = [
        ("fair", 1.06),
        ("fedrot", 1.13),
        ("hetlora", 1.20),
        ("fedavg", 1.25),
        ("raflora", 1.25),
        ("ewwa-adam:factors", 1.35),
    ];
    for (name, figure) in figures {
        let mut changes = Vec::new();
        for seed in 0..20 {
            let clients: Vec<_> =
                (0..4).map(|k| contribution(&format!("client {k}"), adapter(3, 3.0, 100 * seed + k), 1.0)).collect();
            let global = adapter(3, 3.0, 7 + seed);
            let [one, other] = [clients.clone(), rotate_all(&clients, seed)]
                .map(|clients| update(&aggregated(name, &clients, Some(&global)).adapter));
            changes.push(distance(&one, &other) / norm(&one));
        }
        let mean = changes.iter().sum::<f64>() / changes.len() as f64;
        assert!((mean - figure).abs() < 0.006, "{name}: {mean}");
    }
}

#[test]
fn rules_that_go_on_from_a_start_refuse_to_begin_without_one() {
    let clients: Vec<_> = (0..3).map(|k| contribution(&format!("client {k}"), adapter(2, 2.0, k), 1.0)).collect();
    for name in WITH_START {
        assert!(named(name).needs_start());
        let error = named(name).aggregate(&clients).unwrap_err();
        assert!(matches!(error, Error::NeedsStart { .. }), "{name}: {error:?}");
        assert!(error.hint().unwrap().contains("`product`"));
        assert!(matches!(named(name).configure(1, &State::new()), Err(Error::NeedsStart { .. })));
    }
}

#[test]
fn a_global_adapter_of_another_shape_is_refused_by_module() {
    let clients: Vec<_> = (0..3).map(|k| contribution(&format!("client {k}"), adapter(2, 2.0, k), 1.0)).collect();
    for name in ["ffa", "ewwa-adam", "fedadam", "fedrot"] {
        let error = named(name).step(1, Some(&adapter(3, 2.0, 9)), &clients, &Memory::new()).unwrap_err();
        assert!(error.to_string().contains(MODULES[0].0), "{name}: {error}");
    }
}

#[test]
fn other_kinds_are_refused_in_words() {
    let clients: Vec<_> = (0..5).map(|k| contribution(&format!("client {k}"), dora(2, 2.0, k), 1.0)).collect();
    for name in WITHOUT_START.iter().filter(|name| **name != "fedavg") {
        let error = named(name).aggregate(&clients).unwrap_err();
        assert!(error.to_string().contains("averages the updates of LoRA"), "{name}: {error}");
    }
}

/// Padding with zeros shrinks the upper slices; averaging by slice does not.
#[test]
fn rank_slices_of_few_clients_keep_their_energy() {
    let full = adapter(2, 2.0, 1);
    let narrow = adapter(1, 1.0, 2);
    let clients = [("a", &full), ("b", &narrow), ("c", &narrow)].map(|(n, a)| contribution(n, a.clone(), 1.0));
    let upper = |name: &str| {
        let result = named(name).aggregate(&clients).unwrap().adapter;
        let factors = result.get(MODULES[0].0).unwrap().low_rank();
        norm(&values(&factors.down.narrow(0, 1, 1).unwrap()))
    };
    let own = norm(&values(&full.get(MODULES[0].0).unwrap().low_rank().down.narrow(0, 1, 1).unwrap()));
    assert!((upper("raflora") - own).abs() < 1e-5);
    assert!(upper("hetlora") < 0.7 * own);
}

#[test]
fn a_client_takes_home_the_slices_that_its_rank_holds() {
    let [wide, narrow] = [adapter(3, 6.0, 1), adapter(1, 2.0, 2)];
    let cut = leading_slices(&wide, 2).unwrap();
    for (module, update) in cut.iter() {
        let whole = wide.get(module).unwrap();
        assert_eq!((update.rank(), update.scale()), (2, whole.scale()));
        let rows = whole.low_rank().down.narrow(0, 0, 2).unwrap();
        assert_eq!(values(&update.low_rank().down), values(&rows));
    }
    assert_eq!(tensors(&leading_slices(&narrow, 2).unwrap()), tensors(&narrow));
    assert!(leading_slices(&wide, 0).is_err());
    // Padded to the largest rank, a client alone gets its own back.
    let alone = [contribution("ada", narrow.clone(), 1.0)];
    assert!(
        distance(&update(&leading_slices(&aggregated("hetlora", &alone, None).adapter, 1).unwrap()), &update(&narrow))
            < 1e-6
    );
}

#[test]
fn an_update_of_many_rounds_of_stacking_stays_within_the_modules_size() {
    let strategy = named("flora");
    let (mut global, mut expected): (Option<Adapter>, Vec<f64>) = (None, Vec::new());
    for round in 1..5u64 {
        let clients: Vec<_> =
            (0..3).map(|k| contribution(&format!("client {k}"), adapter(2, 2.0, 10 * round + k), 1.0)).collect();
        let mean = mean_update(&clients);
        expected = if expected.is_empty() { mean } else { expected.iter().zip(mean).map(|(a, b)| a + b).collect() };
        let (aggregate, memory) = strategy.step(round as usize, global.as_ref(), &clients, &Memory::new()).unwrap();
        assert!(memory.is_empty());
        global = Some(aggregate.adapter);
    }
    let global = global.unwrap();
    assert!(distance(&update(&global), &expected) < 1e-4 * norm(&expected));
    assert!(global.iter().all(|(_, update)| update.rank() <= 5));
}

#[test]
fn a_rule_says_whether_sums_are_enough() {
    for name in ["fedavg", "ffa", "rolora", "fedsa", "fedadam"] {
        assert!(named(name).needs_single_contributions().is_none(), "{name}");
    }
    for name in ["product", "flora", "ewwa-adam", "krum", "median", "hetlora", "fedrot"] {
        assert!(named(name).needs_single_contributions().is_some(), "{name}");
    }
}

#[test]
fn an_integer_tensor_is_named() {
    let mut clients: Vec<_> = (0..3).map(|k| contribution(&format!("client {k}"), adapter(2, 2.0, k), 1.0)).collect();
    let path = MODULES[0].0;
    let update =
        clients[1].adapter.get(path).unwrap().try_map(|_, tensor: &Tensor| tensor.to_dtype(DType::U8)).unwrap();
    clients[1].adapter.insert(path, update);
    let error = named("product").aggregate(&clients).unwrap_err();
    assert!(error.to_string().contains("`client 1`") && error.to_string().contains("u8"), "{error}");
}
