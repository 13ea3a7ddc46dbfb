//! Whole runs: clients that pull the global update towards one of their own.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::Device;
use catelier_adapters::{Adapter, sum};
use catelier_federation::{
    Client, Contribution, Error, OnFailure, RoundError, RoundObserver, RoundPlan, RoundReport, State, Strategy,
    run_rounds,
};
use catelier_numerics::tensor_file::{self, TensorFile};
use tempfile::tempdir;

use crate::adapters::{adapter, contribution, distance, dora, mean_update, norm, tensors, update};

#[derive(Debug, thiserror::Error)]
#[error("no light in the studio")]
struct NoLight;

/// A client that moves half of the way from the global update to its own.
struct Artist {
    name: String,
    own: Adapter,
    weight: f64,
    fails_in: Option<usize>,
}

impl Client for Artist {
    type Error = NoLight;

    fn name(&self) -> &str {
        &self.name
    }

    fn train(&mut self, round: usize, global: Option<&Adapter>) -> Result<Contribution, NoLight> {
        if self.fails_in == Some(round) {
            return Err(NoLight);
        }
        let trained = match global {
            None => self.own.clone(),
            Some(global) => sum(&[(global, 0.5), (&self.own, 0.5)]).map_err(|_| NoLight)?,
        };
        Ok(contribution(&self.name, trained, self.weight))
    }
}

fn artists() -> Vec<Artist> {
    let artist = |seed: u64| Artist {
        name: format!("artist {seed}"),
        own: adapter(1, 2.0, seed),
        weight: 1.0 + seed as f64,
        fails_in: None,
    };
    (0..3).map(artist).collect()
}

fn plan(rounds: usize) -> RoundPlan {
    let strategy = "product:exact".parse().unwrap();
    RoundPlan { strategy, rounds, ..RoundPlan::default() }
}

fn run(clients: &mut [Artist], plan: &RoundPlan, state: State) -> State {
    run_rounds(clients, plan, state, &mut ()).unwrap()
}

#[test]
fn rounds_lead_to_the_mean_of_the_clients() {
    let mut clients = artists();
    let own: Vec<_> = clients.iter().map(|a| contribution(&a.name, a.own.clone(), a.weight)).collect();
    let state = run(&mut clients, &plan(3), State::new());
    let mean = mean_update(&own);
    assert!(distance(&update(state.global().unwrap()), &mean) < 1e-4 * norm(&mean));
    assert_eq!(state.completed(), 3);
    let [first, .., last] = state.history() else { panic!("three rounds") };
    assert!((f64::from(first.norm) - norm(&mean)).abs() < 1e-4 && (first.change - first.norm).abs() < 1e-9);
    assert!(last.change < 1e-3, "{}", last.change);
    assert_eq!(last.clients.len(), 3);
}

#[test]
fn a_saved_state_goes_on_as_if_it_had_not_stopped() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let whole = run(&mut artists(), &plan(4), State::new());
    run(&mut artists(), &plan(2), State::new()).save(&path).unwrap();
    let resumed = run(&mut artists(), &plan(4), State::load(&path).unwrap());
    assert_eq!(update(whole.global().unwrap()), update(resumed.global().unwrap()));
    assert_eq!(whole.history(), resumed.history());
}

#[test]
fn a_state_saves_the_same_bytes_twice() {
    let folder = tempdir().unwrap();
    let (first, second) = (folder.path().join("a"), folder.path().join("b"));
    run(&mut artists(), &plan(2), State::new()).save(&first).unwrap();
    State::load(&first).unwrap().save(&second).unwrap();
    assert!(std::fs::read(first).unwrap() == std::fs::read(second).unwrap());
}

#[test]
fn a_state_before_the_first_round_can_be_saved() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("state");
    State::new().save(&path).unwrap();
    let state = State::load(&path).unwrap();
    assert!(state.global().is_none() && state.completed() == 0);
    State::starting_from(adapter(2, 3.7, 1)).save(&path).unwrap();
    let state = State::load(&path).unwrap();
    assert_eq!(update(state.global().unwrap()), update(&adapter(2, 3.7, 1)));
}

#[test]
fn a_state_keeps_every_tensor_of_a_dora() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("state");
    State::starting_from(dora(2, 3.7, 1)).save(&path).unwrap();
    let state = State::load(&path).unwrap();
    assert_eq!(tensors(state.global().unwrap()), tensors(&dora(2, 3.7, 1)));
}

#[test]
fn a_damaged_state_is_refused_by_name() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    State::starting_from(adapter(2, 3.7, 1)).save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for bit in (0..whole.len() * 8).step_by(41) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, flipped).unwrap();
        let error = State::load(&path).unwrap_err();
        assert!(error.to_string().contains("state.safetensors"), "bit {bit}: {error}");
    }
}

#[test]
fn a_state_of_the_version_before_checksums_is_read_and_one_with_nan_is_not() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("state");
    State::starting_from(adapter(2, 3.7, 1)).save(&path).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let tensor = |name: &str| (name.to_owned(), file.tensor(name, &Device::Cpu).unwrap());
    let (mut tensors, mut metadata): (BTreeMap<_, _>, _) =
        (file.names().map(tensor).collect(), file.metadata().clone());
    metadata.remove(tensor_file::CHECKSUM);
    metadata.insert("version".into(), "1".into());
    tensor_file::write(&path, &tensors, &metadata).unwrap();
    assert_eq!(update(State::load(&path).unwrap().global().unwrap()), update(&adapter(2, 3.7, 1)));

    let name = tensors.keys().find(|name| name.ends_with("down")).unwrap().clone();
    let nan = (tensors[&name].zeros_like().unwrap() / 0.0).unwrap();
    tensors.insert(name, nan);
    metadata.insert("version".into(), "2".into());
    tensor_file::write_checked(&path, &tensors, &metadata).unwrap();
    let error = State::load(&path).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
}

#[test]
fn other_files_are_no_states() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let format = catelier_adapters::file::Format::Kohya;
    catelier_adapters::file::write(&path, &adapter(2, 3.0, 1), format, &Default::default()).unwrap();
    assert!(matches!(State::load(&path), Err(Error::State { .. })));
    std::fs::write(&path, b"nothing").unwrap();
    assert!(matches!(State::load(&path), Err(Error::Numerics { .. })));
}

#[test]
fn a_failing_client_stops_the_run_by_default() {
    let mut clients = artists();
    clients[1].fails_in = Some(2);
    let error = run_rounds(&mut clients, &plan(3), State::new(), &mut ()).unwrap_err();
    assert!(matches!(error, RoundError::Client { round: 2, .. }), "{error}");
    assert!(error.to_string().contains("`artist 1`"), "{error}");
}

#[test]
fn a_run_can_go_on_without_a_failing_client() {
    let mut clients = artists();
    clients[1].fails_in = Some(2);
    let plan = RoundPlan { on_failure: OnFailure::SkipClient, ..plan(3) };
    let state = run(&mut clients, &plan, State::new());
    let present: Vec<_> = state.history().iter().map(|report| report.clients.len()).collect();
    assert_eq!(present, [3, 2, 3]);
    assert_eq!(state.history()[1].failed, [("artist 1".to_owned(), "no light in the studio".to_owned())]);
}

#[test]
fn a_round_in_which_all_fail_is_an_error() {
    let mut clients = artists();
    for client in &mut clients {
        client.fails_in = Some(1);
    }
    let plan = RoundPlan { on_failure: OnFailure::SkipClient, ..plan(1) };
    let error = run_rounds(&mut clients, &plan, State::new(), &mut ()).unwrap_err();
    assert!(matches!(error, RoundError::Aggregate { round: 1, source: Error::NoContributions }), "{error}");
}

#[test]
fn what_cannot_be_aggregated_names_the_round_and_keeps_the_hint() {
    let mut clients = artists();
    clients[0].own = adapter(2, 2.0, 0);
    let plan = RoundPlan { strategy: Strategy::Fedavg, ..plan(1) };
    let error = run_rounds(&mut clients, &plan, State::new(), &mut ()).unwrap_err();
    assert_eq!(error.to_string(), "round 1 cannot be aggregated");
    assert!(error.hint().unwrap().contains("`product`"));
}

#[derive(Default)]
struct Diary {
    lines: Vec<String>,
    stop_after: usize,
}

impl RoundObserver for Diary {
    fn client_starts(&mut self, round: usize, client: &str) {
        self.lines.push(format!("{round} {client} starts"));
    }

    fn client_done(&mut self, round: usize, contribution: &Contribution) {
        self.lines.push(format!("{round} {} done", contribution.client));
    }

    fn round_done(&mut self, report: &RoundReport, state: &State) -> ControlFlow<()> {
        assert_eq!(report.round, state.completed());
        self.lines.push(format!("{} over", report.round));
        if report.round == self.stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[test]
fn an_observer_sees_everything_and_can_end_the_run() {
    let mut diary = Diary { stop_after: 1, ..Diary::default() };
    let mut clients = artists();
    clients.truncate(2);
    let state = run_rounds(&mut clients, &plan(5), State::new(), &mut diary).unwrap();
    assert_eq!(state.completed(), 1);
    let expected = ["1 artist 0 starts", "1 artist 0 done", "1 artist 1 starts", "1 artist 1 done", "1 over"];
    assert_eq!(diary.lines, expected);
}

#[test]
fn a_run_needs_clients() {
    let error = run_rounds::<Artist>(&mut [], &plan(1), State::new(), &mut ()).unwrap_err();
    assert!(matches!(error, RoundError::NoClients));
}
