//! Laws that hold for any contributions.

use catelier_adapters::{Adapter, LoraFactors, resize, sum};
use catelier_federation::{Contribution, Distance, Error, Strategy as Aggregation, TargetRank};
use proptest::prelude::*;

use crate::adapters::{adapter, contribution, distance, dora, mean_update, norm, tensors, update};

/// Clients of one rank and alpha.
fn alike() -> impl Strategy<Value = Vec<Contribution>> {
    (1..4usize, 1..20u32, proptest::collection::vec((any::<u64>(), 1..50u32), 1..5)).prop_map(
        |(rank, alpha, clients)| {
            let client = |(index, (seed, weight)): (usize, (u64, u32))| {
                let adapter = adapter(rank, f64::from(alpha) / 4.0, seed);
                contribution(&format!("client {index}"), adapter, f64::from(weight))
            };
            clients.into_iter().enumerate().map(client).collect()
        },
    )
}

/// Clients of any ranks and alphas.
fn mixed() -> impl Strategy<Value = Vec<Contribution>> {
    proptest::collection::vec((1..4usize, 1..20u32, any::<u64>(), 1..50u32), 1..5).prop_map(|clients| {
        let client = |(index, (rank, alpha, seed, weight)): (usize, (usize, u32, u64, u32))| {
            let adapter = adapter(rank, f64::from(alpha) / 4.0, seed);
            contribution(&format!("client {index}"), adapter, f64::from(weight))
        };
        clients.into_iter().enumerate().map(client).collect()
    })
}

fn exact() -> Aggregation {
    Aggregation::Product { rank: TargetRank::Exact, alpha: None }
}

fn strategies() -> [Aggregation; 3] {
    [Aggregation::Fedavg, Aggregation::product(), exact()]
}

fn aggregated(strategy: &Aggregation, contributions: &[Contribution]) -> Adapter {
    strategy.aggregate(contributions).unwrap().adapter
}

fn bits(adapter: &Adapter) -> Vec<u64> {
    tensors(adapter).into_iter().flat_map(|(_, values)| values).map(f64::to_bits).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn average_of_equal_adapters_is_that_adapter(clients in alike()) {
        let shared = clients[0].adapter.clone();
        let equal: Vec<_> = clients.iter().map(|c| contribution(&c.client, shared.clone(), c.weight)).collect();
        let expected = update(&shared);
        for strategy in strategies() {
            let average = update(&aggregated(&strategy, &equal));
            prop_assert!(distance(&average, &expected) < 1e-5 * (1.0 + norm(&expected)), "{strategy}");
        }
    }

    #[test]
    fn order_of_clients_is_irrelevant_to_the_bit(clients in alike(), turn in 0..4usize) {
        let mut turned = clients.clone();
        turned.rotate_left(turn % clients.len());
        turned.reverse();
        for strategy in strategies() {
            prop_assert_eq!(bits(&aggregated(&strategy, &clients)), bits(&aggregated(&strategy, &turned)));
        }
    }

    #[test]
    fn doubling_all_weights_is_irrelevant_to_the_bit(clients in alike()) {
        let doubled: Vec<_> =
            clients.iter().map(|c| contribution(&c.client, c.adapter.clone(), 2.0 * c.weight)).collect();
        for strategy in strategies() {
            prop_assert_eq!(bits(&aggregated(&strategy, &clients)), bits(&aggregated(&strategy, &doubled)));
        }
    }

    #[test]
    fn product_is_the_mean_of_updates_when_the_rank_suffices(clients in mixed()) {
        let mean = mean_update(&clients);
        let aggregate = exact().aggregate(&clients).unwrap();
        prop_assert!(distance(&update(&aggregate.adapter), &mean) < 1e-5 * (1.0 + norm(&mean)));
        prop_assert!(aggregate.distance().absolute < 1e-5 * (1.0 + norm(&mean)));
    }

    #[test]
    fn product_is_the_best_approximation_at_its_rank(clients in mixed(), rank in 1..4usize, seed in any::<u64>()) {
        let strategy = Aggregation::Product { rank: TargetRank::Fixed(rank), alpha: None };
        let (mean, best) = (mean_update(&clients), aggregated(&strategy, &clients));
        let reached = distance(&update(&best), &mean);
        // A truncation by another route is no nearer to the exact mean, and neither is any adapter close to the result.
        let terms: Vec<_> = clients.iter().map(|c| (&c.adapter, c.weight)).collect();
        let total: f64 = clients.iter().map(|c| c.weight).sum();
        let cut = resize(&sum(&terms).unwrap().scaled(1.0 / total).unwrap(), rank).unwrap().adapter;
        let tolerance = 1e-5 * (1.0 + norm(&mean));
        prop_assert!((distance(&update(&cut), &mean) - reached).abs() < tolerance);
        for (step, sign) in [(1e-2, 1.0), (1e-2, -1.0), (1e-1, 1.0), (1e-1, -1.0)] {
            let nearby = moved(&best, &adapter(rank, rank as f64, seed), sign * step);
            prop_assert!(distance(&update(&nearby), &mean) > reached - tolerance);
        }
    }

    #[test]
    fn distances_are_those_of_the_updates(clients in alike()) {
        let mean = mean_update(&clients);
        for strategy in strategies() {
            let aggregate = strategy.aggregate(&clients).unwrap();
            let reported = aggregate.distance();
            let measured = distance(&update(&aggregate.adapter), &mean);
            prop_assert!((reported.absolute - measured).abs() < 1e-5 * (1.0 + norm(&mean)), "{strategy}");
            prop_assert!((reported.mean_norm - norm(&mean)).abs() < 1e-5 * (1.0 + norm(&mean)), "{strategy}");
        }
    }

    #[test]
    fn an_aggregate_is_finite_or_refused(clients in mixed(), sizes in proptest::collection::vec((-30..39i32, -30..39i32), 4)) {
        let scaled: Vec<_> = clients
            .iter()
            .zip(&sizes)
            .map(|(c, (down, up))| contribution(&c.client, with_sizes(&c.adapter, *down, *up), c.weight))
            .collect();
        for strategy in strategies() {
            match strategy.aggregate(&scaled) {
                Ok(aggregate) => {
                    prop_assert!(update(&aggregate.adapter).iter().all(|value| value.is_finite()), "{strategy}");
                    let Distance { absolute, mean_norm } = aggregate.distance();
                    prop_assert!(absolute.is_finite() && mean_norm.is_finite(), "{strategy}");
                    prop_assert!(mean_norm > 0.0, "{strategy}");
                }
                Err(error) => {
                    let named = matches!(error, Error::Contributions { .. } | Error::Overflow { .. });
                    prop_assert!(named, "{strategy}: {error:?}");
                }
            }
        }
    }

    #[test]
    fn fedavg_is_off_by_the_spread_of_the_factors(clients in alike()) {
        let total: f64 = clients.iter().map(|c| c.weight).sum();
        let average = aggregated(&Aggregation::Fedavg, &clients);
        let mut expected = mean_update(&clients);
        // Mean minus spread: `sum p_k (up_k - mean up) (down_k - mean down)`.
        for contribution in &clients {
            let spread = difference(&contribution.adapter, &average);
            for (value, part) in expected.iter_mut().zip(update(&spread)) {
                *value -= contribution.weight / total * part;
            }
        }
        prop_assert!(distance(&update(&average), &expected) < 1e-4 * (1.0 + norm(&expected)));
    }

    #[test]
    fn fedavg_of_doras_is_the_mean_of_every_tensor(seeds in proptest::collection::vec(any::<u64>(), 1..5), rank in 1..4usize) {
        let client = |(index, seed): (usize, &u64)| {
            contribution(&format!("client {index}"), dora(rank, 3.0, *seed), 1.0 + index as f64)
        };
        let clients: Vec<_> = seeds.iter().enumerate().map(client).collect();
        let total: f64 = clients.iter().map(|c| c.weight).sum();
        for (index, (name, found)) in tensors(&aggregated(&Aggregation::Fedavg, &clients)).into_iter().enumerate() {
            let mut mean = vec![0.0; found.len()];
            for client in &clients {
                let (_, values) = &tensors(&client.adapter)[index];
                mean.iter_mut().zip(values).for_each(|(mean, value)| *mean += client.weight / total * value);
            }
            prop_assert!(distance(&found, &mean) < 1e-5 * (1.0 + norm(&mean)), "{name}");
        }
    }

    #[test]
    fn fedavg_equals_product_when_all_downs_are_equal(clients in alike()) {
        let downs = &clients[0].adapter;
        let shared: Vec<_> = clients
            .iter()
            .map(|c| contribution(&c.client, with_downs(&c.adapter, downs), c.weight))
            .collect();
        let fedavg = Aggregation::Fedavg.aggregate(&shared).unwrap();
        let product = aggregated(&Aggregation::product(), &shared);
        let size = 1.0 + norm(&update(&product));
        prop_assert!(distance(&update(&fedavg.adapter), &update(&product)) < 1e-5 * size);
        prop_assert!(fedavg.distance().absolute < 1e-5 * size);
    }

    #[test]
    fn product_keeps_the_mean_scale(clients in mixed()) {
        let total: f64 = clients.iter().map(|c| c.weight).sum();
        let average = aggregated(&Aggregation::product(), &clients);
        for (module, factors) in average.iter() {
            let scale: f64 =
                clients.iter().map(|c| c.weight / total * c.adapter.get(module).unwrap().scale()).sum();
            let largest = clients.iter().map(|c| c.adapter.get(module).unwrap().rank()).max().unwrap();
            prop_assert!((factors.scale() - scale).abs() < 1e-9);
            prop_assert_eq!(factors.rank(), largest);
        }
    }
}

/// The adapter with its factors moved by a step in the direction of another's.
fn moved(adapter: &Adapter, direction: &Adapter, step: f64) -> Adapter {
    combined(adapter, direction, |own, other| (own + (other * step).unwrap()).unwrap())
}

/// The adapter with its factors multiplied by powers of ten.
fn with_sizes(adapter: &Adapter, down: i32, up: i32) -> Adapter {
    let scaled = |tensor: &candle_core::Tensor, power: i32| (tensor * 10f64.powi(power)).unwrap();
    adapter
        .iter()
        .map(|(module, update)| {
            let factors = update.low_rank();
            let (down, up) = (scaled(&factors.down, down), scaled(&factors.up, up));
            (module.to_owned(), LoraFactors::new(down, up, factors.alpha).unwrap())
        })
        .collect()
}

/// The adapter whose factors are the differences of two.
fn difference(left: &Adapter, right: &Adapter) -> Adapter {
    combined(left, right, |left, right| (left - right).unwrap())
}

fn combined(
    left: &Adapter,
    right: &Adapter,
    combine: impl Fn(&candle_core::Tensor, &candle_core::Tensor) -> candle_core::Tensor,
) -> Adapter {
    left.iter()
        .map(|(module, update)| {
            let (factors, other) = (update.low_rank(), right.get(module).unwrap().low_rank());
            let (down, up) = (combine(&factors.down, &other.down), combine(&factors.up, &other.up));
            (module.to_owned(), LoraFactors::new(down, up, factors.alpha).unwrap())
        })
        .collect()
}

fn with_downs(adapter: &Adapter, downs: &Adapter) -> Adapter {
    combined(downs, adapter, |down, _| down.clone())
        .iter()
        .map(|(module, shared)| {
            let (shared, own) = (shared.low_rank(), adapter.get(module).unwrap().low_rank());
            (module.to_owned(), LoraFactors::new(shared.down.clone(), own.up.clone(), own.alpha).unwrap())
        })
        .collect()
}
