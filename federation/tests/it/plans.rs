//! Plans: instructions, borders, heads, participation, and states with a memory.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use catelier_adapters::{Adapter, LayerUpdate, LoraFactors};
use catelier_federation::{
    Client, Contribution, Error, HeadRule, Instructions, OnFailure, Participation, Payload, Personal, Problem, Role,
    Roles, RoundError, RoundPlan, ShareFilter, State, Strategy, Weighting, proximal_term, run_rounds,
};
use tempfile::tempdir;

use crate::adapters::{
    MODULES, adapter, contribution, distance, mean_update, norm, tensors, update, values, with_factor,
};

#[derive(Debug, thiserror::Error)]
#[error("unused")]
struct Never;

/// A client that does as it is told: it moves every tensor that is not frozen half of the way to its own, and keeps
/// what is personal.
struct Obedient {
    name: String,
    goal: Adapter,
    home: Option<Adapter>,
    disobeys: bool,
}

impl Obedient {
    fn new(seed: u64) -> Self {
        Self { name: format!("client {seed}"), goal: adapter(2, 2.0, 50 + seed), home: None, disobeys: false }
    }
}

impl Client for Obedient {
    type Error = Never;

    fn name(&self) -> &str {
        &self.name
    }

    fn train(&mut self, _: usize, _: Option<&Adapter>) -> Result<Contribution, Never> {
        Err(Never)
    }

    fn can_follow(&self, _: &Instructions) -> bool {
        true
    }

    fn follow(&mut self, instructions: &Instructions, global: Option<&Adapter>) -> Result<Contribution, Never> {
        let start = instructions.starting_point(global, self.home.as_ref()).map_err(|_| Never)?;
        let start = start.unwrap_or_else(|| zero_up(&self.goal));
        let trained = instructions.trained(&start);
        let moved = |(module, update): (&str, &LayerUpdate)| {
            let goal = self.goal.get(module).unwrap();
            let moved =
                update.try_map(|name, tensor| match trained.contains(&format!("{module}.{name}")) || self.disobeys {
                    true => ((tensor + goal.get(name).unwrap())? * 0.5)?.to_dtype(DType::F32),
                    false => Ok(tensor.clone()),
                });
            (module.to_owned(), moved.unwrap())
        };
        let own: Adapter = start.iter().map(moved).collect();
        self.home = Some(own.clone());
        Ok(contribution(&self.name, own, 1.0))
    }
}

fn zero_up(adapter: &Adapter) -> Adapter {
    let zeroed = |(module, update): (&str, &LayerUpdate)| {
        let update = update.try_map(|name, tensor| if name == "up" { tensor.zeros_like() } else { Ok(tensor.clone()) });
        (module.to_owned(), update.unwrap())
    };
    adapter.iter().map(zeroed).collect()
}

fn clients() -> Vec<Obedient> {
    (0..4).map(Obedient::new).collect()
}

fn start() -> State {
    State::starting_from(zero_up(&adapter(2, 2.0, 9)))
}

fn plan(strategy: &str, rounds: usize) -> RoundPlan {
    RoundPlan { strategy: strategy.parse().unwrap(), rounds, ..RoundPlan::default() }
}

fn play(plan: &RoundPlan, state: State) -> State {
    run_rounds(&mut clients(), plan, state, &mut ()).unwrap_or_else(|error| panic!("{error:?}"))
}

fn tensor(adapter: &Adapter, module: usize, name: &str) -> Vec<f64> {
    values(adapter.get(MODULES[module].0).unwrap().get(name).unwrap())
}

const WITH_ROLES: [&str; 4] = ["ffa", "rolora", "fedsa", "ewwa-adam"];

#[test]
fn every_strategy_plays_rounds() {
    for name in Strategy::NAMES.iter().filter(|name| **name != "krum") {
        let state = play(&plan(name, 3), start());
        assert_eq!(state.completed(), 3, "{name}");
        assert!(update(state.global().unwrap()).iter().all(|value| value.is_finite()), "{name}");
    }
}

#[test]
fn a_saved_memory_goes_on_as_if_it_had_not_stopped() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    for name in ["ewwa-yogi", "ewwa-adam:product", "ewwa-released:factors", "fedadam", "fedex"] {
        let whole = play(&plan(name, 4), start());
        let half = play(&plan(name, 2), start());
        assert!(!half.memory().is_empty(), "{name}");
        half.save(&path).unwrap();
        let resumed = play(&plan(name, 4), State::load(&path).unwrap());
        assert_eq!(tensors(whole.global().unwrap()), tensors(resumed.global().unwrap()), "{name}");
        assert_eq!(whole.history(), resumed.history(), "{name}");
        let (first, second) = (std::fs::read(&path).unwrap(), folder.path().join("again"));
        State::load(&path).unwrap().save(&second).unwrap();
        assert!(first == std::fs::read(second).unwrap(), "{name}");
    }
}

#[test]
fn a_state_without_memory_keeps_the_version_that_older_programs_read() {
    let folder = tempdir().unwrap();
    for (name, version) in [("product", "2"), ("ewwa-adam", "3")] {
        let path = folder.path().join(name);
        play(&plan(name, 1), start()).save(&path).unwrap();
        let file = catelier_numerics::tensor_file::TensorFile::open(&path).unwrap();
        assert_eq!(file.metadata()["version"], version);
    }
}

#[test]
fn a_damaged_memory_is_refused() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    play(&plan("fedadam", 1), start()).save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for bit in (0..whole.len() * 8).step_by(997) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, flipped).unwrap();
        assert!(State::load(&path).is_err(), "bit {bit}");
    }
}

#[test]
fn a_client_that_only_trains_everything_is_not_asked_for_more() {
    struct Plain;
    impl Client for Plain {
        type Error = Never;
        fn name(&self) -> &str {
            "plain"
        }
        fn train(&mut self, _: usize, _: Option<&Adapter>) -> Result<Contribution, Never> {
            Ok(contribution("plain", adapter(2, 2.0, 1), 1.0))
        }
    }
    for name in WITH_ROLES.into_iter().chain(["flora", "fedex"]) {
        assert!(!plan(name, 1).strategy.is_plain());
        let error = run_rounds(&mut [Plain], &plan(name, 1), start(), &mut ()).unwrap_err();
        assert!(matches!(&error, RoundError::CannotFollow { client, .. } if client == "plain"), "{name}: {error}");
        assert!(error.to_string().contains(name) && error.hint().unwrap().contains("`product`"));
    }
    assert!(run_rounds(&mut [Plain], &plan("fedavg", 1), start(), &mut ()).is_ok());
}

#[test]
fn a_client_that_trains_what_is_frozen_is_refused_by_name() {
    let mut clients = clients();
    clients[2].disobeys = true;
    let error = run_rounds(&mut clients, &plan("ffa", 1), start(), &mut ()).unwrap_err();
    let RoundError::Aggregate { source: Error::Contributions { rejected, .. }, .. } = error else { panic!("{error}") };
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].client, "client 2");
    assert!(matches!(&rejected[0].problems[0], Problem::Moved { tensor } if tensor.ends_with("down")));
}

#[test]
fn frozen_and_personal_factors_keep_the_bits_of_the_start_on_the_server() {
    let first = start();
    for (name, held) in [("ffa", "down"), ("fedsa", "up"), ("ewwa-adam", "down")] {
        let state = play(&plan(name, 3), first.clone());
        for module in 0..MODULES.len() {
            let (before, after) = (first.global().unwrap(), state.global().unwrap());
            assert_eq!(tensor(before, module, held), tensor(after, module, held), "{name}");
        }
    }
}

#[test]
fn half_of_the_factors_travel() {
    let state = start();
    for name in WITH_ROLES {
        let instructions = plan(name, 1).configure(1, &state).unwrap();
        let payload = instructions.filter().outgoing(state.global().unwrap(), state.global()).unwrap().unwrap();
        let factor = if name == "fedsa" { "down" } else { "up" };
        assert!(payload.tensors.keys().all(|path| path.ends_with(factor)), "{name}");
        assert_eq!(payload.tensors.len(), MODULES.len());
        let all = state.global().unwrap().element_count();
        assert!(payload.byte_count() < 4 * all, "{name}");
        let whole = payload.complete(state.global()).unwrap();
        assert_eq!(tensors(&whole), tensors(state.global().unwrap()), "{name}");
    }
}

#[test]
fn a_report_says_the_bytes_that_left_and_how_far_apart_the_updates_lie() {
    let (state, mut first) = (start(), clients());
    let instructions = plan("ffa", 1).configure(1, &state).unwrap();
    let payload = instructions.filter().outgoing(state.global().unwrap(), state.global()).unwrap().unwrap();
    let ffa = play(&plan("ffa", 1), state);
    assert_eq!(ffa.history()[0].bytes_sent, 4 * payload.byte_count() as u64);
    let product = play(&plan("product", 1), start());
    let elements = product.global().unwrap().element_count();
    assert_eq!(product.history()[0].bytes_sent, 4 * 4 * elements as u64);

    let plain = Instructions { round: 1, ..Instructions::default() };
    let replies: Vec<_> = first.iter_mut().map(|client| client.follow(&plain, start().global()).unwrap()).collect();
    let mean = mean_update(&replies);
    let apart = replies.iter().map(|reply| distance(&update(&reply.adapter), &mean).powi(2)).sum::<f64>() / 4.0;
    let expected = apart.sqrt() / norm(&mean);
    let found = f64::from(product.history()[0].spread);
    assert!((found / expected - 1.0).abs() < 1e-3, "{found} and {expected}");
}

#[test]
fn rolora_trains_the_factors_in_turn() {
    let mut state = start();
    for (round, moved, held) in [(1, "up", "down"), (2, "down", "up"), (3, "up", "down")] {
        let before = state.global().unwrap().clone();
        state = play(&plan("rolora", round), state);
        let after = state.global().unwrap();
        assert_eq!(tensor(&before, 0, held), tensor(after, 0, held), "{round}");
        assert_ne!(tensor(&before, 0, moved), tensor(after, 0, moved), "{round}");
    }
}

#[test]
fn a_clients_own_factor_comes_home_again() {
    let mut clients = clients();
    run_rounds(&mut clients, &plan("fedsa", 2), start(), &mut ()).unwrap();
    // Each `up` went half of the way twice: 3/4 of its goal, whatever the others did.
    for client in &clients {
        let (own, goal) = (tensor(client.home.as_ref().unwrap(), 0, "up"), tensor(&client.goal, 0, "up"));
        let expected: Vec<f64> = goal.iter().map(|goal| 0.75 * goal).collect();
        assert!(distance(&own, &expected) < 1e-6);
    }
}

/// After rounds of `flora` and of `fedex`, the whole update is the exact mean, though no client sends more than its
/// rank.
#[test]
fn merged_updates_make_the_whole_exact() {
    let state = play(&plan("fedex", 1), start());
    let instructions = plan("fedex", 2).configure(2, &state).unwrap();
    let whole = instructions.whole(state.global().unwrap()).unwrap();
    let mut first = clients();
    let plain = Instructions { round: 1, ..Instructions::default() };
    let replies: Vec<_> = first.iter_mut().map(|client| client.follow(&plain, start().global()).unwrap()).collect();
    let mean = mean_update(&replies);
    assert!(distance(&update(&whole), &mean) < 1e-5 * (1.0 + norm(&mean)));
    let stacked = play(&plan("flora", 1), State::new());
    let instructions = plan("flora", 2).configure(2, &stacked).unwrap();
    assert_eq!(tensors(instructions.merged.as_ref().unwrap()), tensors(stacked.global().unwrap()));
}

fn head(rule: HeadRule) -> RoundPlan {
    let head = "resnets.0.conv1".parse().unwrap();
    RoundPlan { personal: Some(Personal { rule, head }), ..plan("product", 3) }
}

#[test]
fn a_fedbabu_head_stays_at_the_start_and_never_travels() {
    let (first, mut clients, plan) = (start(), clients(), head(HeadRule::Fedbabu));
    let instructions = plan.configure(1, &first).unwrap();
    let global = first.global().unwrap();
    assert!(instructions.trained(global).iter().all(|name| name.starts_with(MODULES[0].0)));
    assert_eq!(instructions.roles.names(global, Role::Frozen).len(), 2);
    let payload = instructions.filter().outgoing(global, Some(global)).unwrap().unwrap();
    assert!(payload.tensors.keys().chain(payload.alphas.keys()).all(|name| name.starts_with(MODULES[0].0)));
    let state = run_rounds(&mut clients, &plan, first.clone(), &mut ()).unwrap();
    let of_head = |adapter: &Adapter| [tensor(adapter, 1, "down"), tensor(adapter, 1, "up")];
    for adapter in clients.iter().map(|client| client.home.as_ref().unwrap()).chain([state.global().unwrap()]) {
        assert_eq!(of_head(adapter), of_head(global));
    }
    assert_ne!(tensor(state.global().unwrap(), 0, "up"), tensor(global, 0, "up"));
    let tuning = plan.personal.unwrap().tuning().unwrap();
    assert!(tuning.body && tuning.head);
}

#[test]
fn fedper_and_fedrep_heads_are_trained_at_home() {
    for rule in [HeadRule::Fedper, HeadRule::Fedrep] {
        let (first, mut clients, plan) = (start(), clients(), head(rule));
        let instructions = plan.configure(1, &first).unwrap();
        let shares: f64 = instructions.phases.iter().map(|phase| phase.share).sum();
        assert_eq!(instructions.phases.len(), if rule == HeadRule::Fedrep { 2 } else { 0 });
        assert!(instructions.phases.is_empty() || (shares - 1.0).abs() < 1e-12);
        let state = run_rounds(&mut clients, &plan, first.clone(), &mut ()).unwrap();
        let of_server = tensor(state.global().unwrap(), 1, "up");
        assert_eq!(of_server, tensor(first.global().unwrap(), 1, "up"));
        let own: Vec<_> = clients.iter().map(|client| tensor(client.home.as_ref().unwrap(), 1, "up")).collect();
        assert!(own.iter().all(|own| *own != of_server) && own[0] != own[1]);
    }
}

#[test]
fn a_head_is_a_part_and_needs_a_start() {
    for patterns in ["*", "nowhere"] {
        let head = Personal { rule: HeadRule::Fedbabu, head: patterns.parse().unwrap() };
        let plan = RoundPlan { personal: Some(head), ..plan("product", 1) };
        let error = plan.configure(1, &start()).unwrap_err();
        assert!(matches!(error, Error::Head { .. }), "{error}");
        assert!(error.to_string().contains(patterns) && error.hint().is_some());
    }
    assert!(matches!(head(HeadRule::Fedper).configure(1, &State::new()), Err(Error::NeedsStart { .. })));
}

#[test]
fn nothing_leaves_that_the_filter_does_not_know() {
    let own = adapter(2, 2.0, 1);
    let filter = ShareFilter::new(Roles::shared());
    assert_eq!(filter.outgoing(&own, None).unwrap().unwrap().tensors.len(), 4);
    let problems = |filter: ShareFilter, adapter: &Adapter| filter.outgoing(adapter, None).unwrap().unwrap_err();
    let small = problems(ShareFilter { most_bytes: 100, ..filter.clone() }, &own);
    assert!(matches!(small[..], [Problem::Bytes { limit: 100, found: 344 }]), "{small:?}");
    let narrow = problems(ShareFilter { largest_rank: 1, ..filter.clone() }, &own);
    assert_eq!(narrow.len(), 4);
    assert!(
        narrow.iter().all(|problem| matches!(problem, Problem::LargeRank { limit: 1, found: 2, .. })),
        "{narrow:?}"
    );
    let range = problems(ShareFilter { largest_value: 1e-6, ..filter.clone() }, &own);
    assert!(range.iter().all(|problem| matches!(problem, Problem::OutOfRange { .. })), "{range:?}");
    let nan = |(path, update): (&str, &LayerUpdate)| {
        let update = update.try_map(|_, tensor| tensor / 0.0).unwrap();
        (path.to_owned(), update)
    };
    let nan: Adapter = own.iter().map(nan).collect();
    assert!(problems(filter, &nan).iter().all(|problem| matches!(problem, Problem::NotFinite { .. })));
}

#[test]
fn a_payload_of_other_ranks_makes_an_adapter_by_itself() {
    let (wide, global) = (adapter(3, 6.0, 1), adapter(2, 2.0, 2));
    let payload = ShareFilter::new(Roles::shared()).outgoing(&wide, None).unwrap().unwrap();
    assert_eq!(tensors(&payload.complete(Some(&global)).unwrap()), tensors(&wide));
    let mut torn: Payload = payload;
    torn.tensors.retain(|path, _| path.ends_with("down"));
    assert!(torn.complete(None).is_err());
}

#[test]
fn drawn_clients_are_a_function_of_seed_and_round() {
    let drawn = Participation::Drawn { share: 0.3, seed: 5 };
    let rounds: Vec<_> = (1..200).map(|round| drawn.of_round(round, 10)).collect();
    assert!(rounds.iter().all(|clients| clients.len() == 3 && clients.is_sorted()));
    assert_eq!(drawn.of_round(7, 10), rounds[6]);
    let mut counts = BTreeMap::new();
    rounds.iter().flatten().for_each(|client| *counts.entry(*client).or_insert(0) += 1);
    assert!(counts.len() == 10 && counts.values().all(|count| (30..90).contains(count)), "{counts:?}");
    assert_eq!(Participation::Drawn { share: 1e-9, seed: 5 }.of_round(1, 10).len(), 1);
    let plan = RoundPlan { participation: drawn, ..plan("product", 2) };
    let state = run_rounds(&mut (0..10).map(Obedient::new).collect::<Vec<_>>(), &plan, State::new(), &mut ()).unwrap();
    assert!(state.history().iter().all(|report| report.clients.len() == 3));
}

#[test]
fn weights_are_uniform_or_given() {
    let replies = [("ada", 30.0), ("ben", 10.0)].map(|(name, weight)| contribution(name, adapter(1, 1.0, 1), weight));
    let weights = |weighting: Weighting| weighting.apply(&replies).iter().map(|c| c.weight).collect::<Vec<_>>();
    assert_eq!(weights(Weighting::Examples), [30.0, 10.0]);
    assert_eq!(weights(Weighting::Uniform), [1.0, 1.0]);
    let similar = Weighting::Similarity([("ada".to_owned(), 0.9)].into());
    assert_eq!(weights(similar.clone()), [0.9, 0.0]);
    let plan = RoundPlan { weighting: similar, on_failure: OnFailure::Stop, ..plan("product", 1) };
    let error = plan.aggregate(1, None, &replies, &Default::default()).unwrap_err();
    assert!(error.to_string().contains("`ben`"), "{error}");
}

#[test]
fn settings_out_of_range_are_refused_before_anybody_trains() {
    let plans = [
        RoundPlan { proximal: -1.0, ..plan("product", 1) },
        RoundPlan { norm_factor: Some(0.0), ..plan("product", 1) },
        RoundPlan { participation: Participation::Drawn { share: 0.0, seed: 1 }, ..plan("product", 1) },
        RoundPlan { strategy: Strategy::Fair { ridge: 0.0 }, ..plan("product", 1) },
    ];
    for plan in plans {
        let error = run_rounds(&mut clients(), &plan, start(), &mut ()).unwrap_err();
        assert!(matches!(error, RoundError::Aggregate { source: Error::Setting { .. }, .. }), "{error:?}");
    }
}

#[test]
fn a_round_goes_on_without_what_is_refused_and_names_it() {
    let mut clients = clients();
    clients.push(Obedient::new(4));
    clients[2].disobeys = true;
    let nan =
        |(module, update): (&str, &LayerUpdate)| (module.to_owned(), update.try_map(|_, tensor| tensor / 0.0).unwrap());
    clients[3].goal = clients[3].goal.iter().map(nan).collect();
    let plan = RoundPlan { on_failure: OnFailure::SkipClient, ..plan("ffa", 2) };
    let state = run_rounds(&mut clients, &plan, start(), &mut ()).unwrap();
    for report in state.history() {
        assert_eq!(report.clients.len(), 3);
        let refused: Vec<&str> = report.failed.iter().map(|(client, _)| client.as_str()).collect();
        assert_eq!(refused, ["client 2", "client 3"]);
        assert!(report.failed[0].1.contains("common start") && report.failed[1].1.contains("not finite"));
    }
    assert!(update(state.global().unwrap()).iter().all(|value| value.is_finite()));
}

#[test]
fn what_needs_single_contributions_is_refused_under_secure_aggregation() {
    let secure = |strategy| RoundPlan { secure_aggregation: true, ..plan(strategy, 1) };
    for strategy in ["product", "ewwa-adam", "krum:1", "fedex"] {
        let error = secure(strategy).validate().unwrap_err();
        assert!(error.to_string().contains("secure aggregation") && error.to_string().contains(strategy), "{error}");
    }
    assert!(secure("ffa").validate().is_ok());
    assert!(RoundPlan { norm_factor: Some(3.0), ..secure("ffa") }.validate().is_err());
}

#[test]
fn a_saved_plan_of_before_is_read() {
    let old = r#"{"strategy": "fedavg", "rounds": 3, "on_failure": "skip_client"}"#;
    let plan: RoundPlan = serde_json::from_str(old).unwrap();
    let expected =
        RoundPlan { strategy: Strategy::Fedavg, rounds: 3, on_failure: OnFailure::SkipClient, ..RoundPlan::default() };
    assert_eq!(plan, expected);
}

#[test]
fn the_proximal_term_pulls_towards_the_start() {
    let global = adapter(2, 2.0, 1);
    let var = Var::from_tensor(&Tensor::ones((2, 7), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let start = global.get(MODULES[0].0).unwrap().low_rank();
    let factors = LoraFactors::new(var.as_tensor().clone(), start.up.clone(), 2.0).unwrap();
    let own: Adapter = [(MODULES[0].0.to_owned(), factors)].into_iter().collect();
    let term = proximal_term(&own, &global, 0.4).unwrap();
    let difference = (var.as_tensor() - &start.down).unwrap();
    let square = norm(&values(&difference)).powi(2);
    assert!((f64::from(term.to_scalar::<f32>().unwrap()) - 0.2 * square).abs() < 1e-5);
    let gradient = term.backward().unwrap().get(&var).unwrap().clone();
    let expected = (difference * 0.4).unwrap();
    assert!(distance(&values(&gradient), &values(&expected)) < 1e-5);
    assert!(plan("product", 1).configure(1, &start_state(&global)).unwrap().are_plain());
    let instructions = RoundPlan { proximal: 0.1, ..plan("product", 1) }.configure(1, &start_state(&global)).unwrap();
    assert!(!instructions.are_plain());
}

fn start_state(global: &Adapter) -> State {
    State::starting_from(with_factor(global, "up", global))
}
