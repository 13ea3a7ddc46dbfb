//! Contributions that stay in their files, and sums of many of them.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::file::{self, Format, Metadata};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors, ModuleInfo, ModuleKind};
use catelier_federation::{
    ClientRound, Contribution, ContributionSource, Contributions, Error, InMemory, Problem, RoundPlan,
    SentContribution, State, StoredContribution, StoredContributions,
};
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use crate::adapters::{
    MODULES, adapter, contribution, distance, dora, mean_update, norm, tensors, update, with_factor,
};
use crate::strategies::{WITH_START, WITHOUT_START, alike, from_start_if_needed, named};

/// The base that the adapters of these tests belong to.
fn modules() -> [ModuleInfo; 2] {
    [
        ModuleInfo { path: MODULES[0].0.into(), kind: ModuleKind::Linear { in_features: 7, out_features: 5 } },
        ModuleInfo {
            path: MODULES[1].0.into(),
            kind: ModuleKind::Conv2d { in_channels: 3, out_channels: 4, kernel: 3, stride: 1, padding: 1 },
        },
    ]
}

/// The contributions as files of adapters, for a plan.
fn stored(folder: &Path, clients: &[Contribution], plan: &RoundPlan, state: &State) -> StoredContributions {
    let roles = plan.configure(1, state).unwrap().roles;
    let mut source = StoredContributions::new();
    for (index, client) in clients.iter().enumerate() {
        let path = folder.join(format!("{index}.safetensors"));
        file::write(&path, &client.adapter, Format::Kohya, &Metadata::default()).unwrap();
        let file = file::open(&path, &modules()).unwrap().file;
        let stored =
            StoredContribution::adapter(&client.client, client.weight, None, file, &roles, state.global()).unwrap();
        source.push(stored.unwrap());
    }
    source
}

/// The bytes of the state after a round with these contributions.
fn after(folder: &Path, plan: &RoundPlan, state: &State, source: &dyn ContributionSource) -> Vec<u8> {
    let mut state = state.clone();
    plan.close_round(&mut state, &Contributions::read(source).unwrap(), Vec::new()).unwrap();
    let path = folder.join("state.safetensors");
    state.save(&path).unwrap();
    std::fs::read(path).unwrap()
}

fn state_of(global: Option<Adapter>) -> State {
    global.map_or_else(State::new, State::starting_from)
}

fn plan(strategy: &str) -> RoundPlan {
    RoundPlan { strategy: named(strategy), ..RoundPlan::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn contributions_in_files_give_the_same_bytes_as_in_memory(clients in alike(), seed in any::<u64>()) {
        let folder = tempdir().unwrap();
        for name in WITHOUT_START.iter().chain(&WITH_START) {
            let (global, clients) = from_start_if_needed(name, &clients, seed);
            let (plan, state) = (plan(name), state_of(global));
            let files = stored(folder.path(), &clients, &plan, &state);
            let [one, other] =
                [&InMemory::new(&clients) as &dyn ContributionSource, &files].map(|source| after(folder.path(), &plan, &state, source));
            prop_assert!(one == other, "{}", name);
        }
    }

    /// Ranks whose sum is far above the modules' sides, and above the number of ranks that are stacked.
    #[test]
    fn sums_of_many_ranks_are_the_mean_of_the_updates(clients in many(), rank in 1..4usize) {
        let mean = mean_update(&clients);
        for name in ["product:exact", "flora", "fedex"] {
            let aggregate = named(name).aggregate(&clients).unwrap();
            prop_assert!(distance(&update(&aggregate.adapter), &mean) < 1e-5 * (1.0 + norm(&mean)), "{}", name);
            prop_assert!((aggregate.distance().mean_norm - norm(&mean)).abs() < 1e-5 * (1.0 + norm(&mean)));
        }
        let cut = named(&format!("product:{rank}")).aggregate(&clients).unwrap();
        let reached = distance(&update(&cut.adapter), &mean);
        prop_assert!((cut.distance().absolute - reached).abs() < 1e-5 * (1.0 + norm(&mean)));
        // Clients of a few ranks, made of the same updates, are summed by their factors.
        let few: Vec<_> = clients.iter().map(few_ranks).collect();
        let by_factors = named(&format!("product:{rank}")).aggregate(&few).unwrap();
        prop_assert!((by_factors.distance().absolute - cut.distance().absolute).abs() < 1e-4 * (1.0 + norm(&mean)));
    }

    #[test]
    fn order_of_many_ranks_is_irrelevant_to_the_bit(clients in many()) {
        let mut turned = clients.clone();
        turned.reverse();
        for name in ["product:2", "fedavg", "krum:1", "geometric-median", "fedex", "median:2"] {
            let [one, other] = [&clients, &turned].map(|clients| tensors(&named(name).aggregate(clients).unwrap().adapter));
            prop_assert_eq!(one, other, "{}", name);
        }
    }

    /// The result of so many ranks is not cut, so it is what the rule promises.
    #[test]
    fn updates_of_many_ranks_are_compared_as_they_are(clients in many()) {
        // Of equal weights, since the median of one that outweighs the others is its own update.
        let clients: Vec<_> = clients.iter().map(|client| contribution(&client.client, client.adapter.clone(), 1.0)).collect();
        let updates: Vec<Vec<f64>> = clients.iter().map(|client| update(&client.adapter)).collect();
        let found = update(&named("geometric-median").aggregate(&clients).unwrap().adapter);
        let mut pull = vec![0.0; found.len()];
        for update in &updates {
            let away = distance(update, &found);
            for ((pull, own), found) in pull.iter_mut().zip(update).zip(&found) {
                *pull += (own - found) / away / clients.len() as f64;
            }
        }
        prop_assert!(norm(&pull) < 1e-4, "{}", norm(&pull));

        let score = |own: usize| {
            let mut others: Vec<f64> =
                (0..updates.len()).filter(|other| *other != own).map(|other| distance(&updates[own], &updates[other]).powi(2)).collect();
            others.sort_by(f64::total_cmp);
            others[..2].iter().sum::<f64>()
        };
        let mut order: Vec<usize> = (0..updates.len()).collect();
        order.sort_by(|left, right| score(*left).total_cmp(&score(*right)));
        // Two that are nearest to each other can have equal scores; then a third is in.
        let krum = update(&named("krum:1").aggregate(&clients).unwrap().adapter);
        let mean_of = |count: usize| -> Vec<f64> {
            (0..krum.len()).map(|at| order[..count].iter().map(|k| updates[*k][at]).sum::<f64>() / count as f64).collect()
        };
        let nearest = [2, 3, 4, 5].map(|count| distance(&mean_of(count), &krum)).into_iter().fold(f64::MAX, f64::min);
        prop_assert!(nearest < 1e-4 * (1.0 + norm(&krum)), "{}", nearest);
    }
}

/// Five clients of 60 ranks.
fn many() -> impl Strategy<Value = Vec<Contribution>> {
    proptest::collection::vec((any::<u64>(), 1..50u32), 5).prop_map(|clients| {
        let client = |(index, (seed, weight)): (usize, (u64, u32))| {
            contribution(&format!("client {index}"), padded(&adapter(3, 3.0, seed)), f64::from(weight))
        };
        clients.into_iter().enumerate().map(client).collect()
    })
}

/// The same update at rank 60, with values in all ranks: each slice is shared out among twenty.
fn padded(adapter: &Adapter) -> Adapter {
    const COPIES: usize = 20;
    let padded = |(module, update): (&str, &LayerUpdate)| {
        let LoraFactors { down, up, .. } = update.low_rank();
        let repeated = |tensor: &Tensor, dim: usize| Tensor::cat(&[tensor; COPIES], dim).unwrap();
        let factors = LoraFactors::new(repeated(down, 0), repeated(up, 1), update.scale() * update.rank() as f64);
        (module.to_owned(), factors.unwrap())
    };
    adapter.iter().map(padded).collect()
}

fn few_ranks(client: &Contribution) -> Contribution {
    let first = |(module, update): (&str, &LayerUpdate)| {
        let LoraFactors { down, up, .. } = update.low_rank();
        let (down, up) = (down.narrow(0, 0, 3).unwrap(), up.narrow(1, 0, 3).unwrap());
        // Twenty copies at a twentieth of the scale each.
        let factors = LoraFactors::new(down.contiguous().unwrap(), up.contiguous().unwrap(), update.scale() * 60.0);
        (module.to_owned(), factors.unwrap())
    };
    contribution(&client.client, client.adapter.iter().map(first).collect(), client.weight)
}

#[test]
fn adapters_of_other_kinds_are_read_from_their_files_too() {
    let folder = tempdir().unwrap();
    let clients: Vec<_> =
        (0..3).map(|seed| contribution(&format!("client {seed}"), dora(2, 4.0, seed), 1.0 + seed as f64)).collect();
    let (plan, state) = (plan("fedavg"), State::new());
    let files = stored(folder.path(), &clients, &plan, &state);
    assert_eq!(
        after(folder.path(), &plan, &state, &files),
        after(folder.path(), &plan, &state, &InMemory::new(&clients))
    );
}

/// A round whose clients send files.
fn sent(strategy: &str, folder: &TempDir) -> (RoundPlan, State, Vec<SentContribution>) {
    let (plan, state) = (plan(strategy), State::starting_from(adapter(2, 2.0, 9)));
    let instructions = plan.configure(1, &state).unwrap();
    let round = ClientRound { plan: plan.clone(), instructions, global: state.global().cloned() };
    let send = |seed: u64| {
        let own = match strategy {
            "ffa" => with_factor(&adapter(2, 2.0, seed), "down", state.global().unwrap()),
            _ => adapter(2, 2.0, seed),
        };
        let sent = round.leaving(contribution(&format!("client {seed}"), own, 1.0 + seed as f64), 5).unwrap().unwrap();
        sent.save(&folder.path().join(format!("{seed}.safetensors"))).unwrap();
        sent
    };
    let sent = (0..3).map(send).collect();
    (plan, state, sent)
}

#[test]
fn what_clients_sent_is_completed_from_the_global_adapter_as_in_memory() {
    for strategy in ["ffa", "product", "fedsa"] {
        let folder = tempdir().unwrap();
        let (plan, state, sent) = sent(strategy, &folder);
        let roles = plan.configure(1, &state).unwrap().roles;
        let mut files = StoredContributions::new();
        for seed in 0..3 {
            let path = folder.path().join(format!("{seed}.safetensors"));
            let (header, stored) = StoredContribution::sent(&path, &roles, state.global()).unwrap();
            assert_eq!((header.client, header.round, header.weight), (format!("client {seed}"), 1, 1.0 + seed as f64));
            files.push(stored);
        }
        let arrived: Vec<_> = sent.iter().map(|sent| sent.complete(state.global()).unwrap()).collect();
        let [one, other] = [&InMemory::new(&arrived) as &dyn ContributionSource, &files]
            .map(|source| after(folder.path(), &plan, &state, source));
        assert!(one == other, "{strategy}");
    }
}

#[test]
fn a_file_that_changes_after_it_was_opened_is_refused_by_name() {
    let folder = tempdir().unwrap();
    let clients: Vec<_> =
        (0..3).map(|seed| contribution(&format!("client {seed}"), adapter(2, 2.0, seed), 1.0)).collect();
    let files = stored(folder.path(), &clients, &plan("fedavg"), &State::new());
    let path = folder.path().join("1.safetensors");
    file::write(&path, &adapter(3, 2.0, 1), Format::Kohya, &Metadata::default()).unwrap();
    let error = Contributions::read(&files).unwrap_err();
    let causes: Vec<String> = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .map(ToString::to_string)
        .collect();
    assert!(causes.join(": ").contains("1.safetensors") && causes.join(": ").contains("changed"), "{causes:?}");
}

#[test]
fn an_adapter_whose_frozen_tensors_moved_is_refused_by_tensor() {
    let folder = tempdir().unwrap();
    let (path, state) = (folder.path().join("moved.safetensors"), State::starting_from(adapter(2, 2.0, 9)));
    file::write(&path, &adapter(2, 2.0, 1), Format::Kohya, &Metadata::default()).unwrap();
    let file = file::open(&path, &modules()).unwrap().file;
    let roles = plan("ffa").configure(1, &state).unwrap().roles;
    let problems = StoredContribution::adapter("ada", 1.0, None, file, &roles, state.global()).unwrap().unwrap_err();
    let moved = MODULES.map(|(module, ..)| Problem::Moved { tensor: format!("{module}.down") });
    assert_eq!(problems, moved);
}

#[test]
fn a_sent_contribution_of_impossible_tensors_is_refused_by_module() {
    let folder = tempdir().unwrap();
    let (plan, state, mut all) = sent("product", &folder);
    let roles = plan.configure(1, &state).unwrap().roles;
    let path = folder.path().join("odd.safetensors");
    for (name, shape) in [("down", vec![3, 7]), ("up", vec![5]), ("magnitude", vec![4])] {
        let sent = &mut all[0].clone();
        let tensor = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        sent.payload.tensors.insert(format!("{}.{name}", MODULES[0].0), tensor);
        sent.save(&path).unwrap();
        let error = StoredContribution::sent(&path, &roles, None).unwrap_err();
        assert!(matches!(&error, Error::File { reason, .. } if reason.contains(MODULES[0].0)), "{name}: {error}");
    }
    all[0].payload.tensors.insert("unet.a.secret".into(), Tensor::ones(2, DType::F32, &Device::Cpu).unwrap());
    all[0].save(&path).unwrap();
    assert!(StoredContribution::sent(&path, &roles, None).unwrap_err().to_string().contains("`unet.a.secret`"));
}

/// Values are looked at once: what a source is asked for tells.
#[test]
fn each_value_is_checked_once_in_a_round() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    struct Counted<'c>(InMemory<'c>, AtomicUsize);
    impl ContributionSource for Counted<'_> {
        fn headers(&self) -> &[catelier_federation::ContributionHeader] {
            self.0.headers()
        }
        fn update(&self, position: usize, module: &str) -> catelier_federation::Result<Option<LayerUpdate>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.update(position, module)
        }
    }
    let clients: Vec<_> =
        (0..4).map(|seed| contribution(&format!("client {seed}"), adapter(2, 2.0, seed), 1.0)).collect();
    let source = Counted(InMemory::new(&clients), AtomicUsize::new(0));
    let plan = RoundPlan { norm_factor: Some(100.0), ..plan("norm-bound") };
    let contributions = Contributions::read(&source).unwrap();
    let updates = clients.len() * MODULES.len();
    assert_eq!(source.1.load(Ordering::Relaxed), updates);
    let (accepted, refused) = plan.sift_from(&contributions);
    assert!(refused.is_empty() && source.1.load(Ordering::Relaxed) == updates);
    plan.aggregate_from(1, None, &accepted, &catelier_federation::Memory::new()).unwrap();
    // Once more for the sum, once for its distance from the mean, and one layout for each module.
    assert_eq!(source.1.load(Ordering::Relaxed), 3 * updates);
}
