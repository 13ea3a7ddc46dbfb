//! The saved state of a federation.

use std::convert::Infallible;
use std::fs;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use catelier_workflows::adapters::{Adapter, file};
use catelier_workflows::federation::{Client, Contribution, RoundObserver, RoundPlan, RoundReport, State, run_rounds};

use super::adapter_file::BASES;
use crate::{Target, Verdict, folder, refused};

pub(super) fn read(input: &[u8]) -> Verdict {
    folder::with_file("federation", "state.safetensors", input, |path| match State::load(path) {
        Ok(state) => {
            assert!(
                SEEDS.iter().any(|seed| seed == input),
                "a damaged state was used, after {} rounds",
                state.completed()
            );
            assert_eq!(state.completed(), state.history().len());
            let again = path.with_file_name("again.safetensors");
            state.save(&again).unwrap_or_else(|error| panic!("loaded, but cannot be saved: {error}"));
            State::load(&again).unwrap_or_else(|error| panic!("saved, but not loaded: {error}"));
            Verdict::Accepted
        }
        Err(error) => refused(&error),
    })
}

/// The states after each of two rounds of two clients, which bring adapters of the corpus: of a strategy that keeps
/// nothing, and of one with a memory.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let adapter = any_adapter();
    let mut clients = ["chalk", "crayon"].map(|name| Fixed { name, adapter: adapter.clone() });
    let mut states = Saved::default();
    for (strategy, start) in [("product", State::new()), ("fedadam", State::starting_from(adapter.clone()))] {
        let plan = RoundPlan { strategy: strategy.parse().unwrap(), rounds: 2, ..RoundPlan::default() };
        run_rounds(&mut clients, &plan, start, &mut states).unwrap();
    }
    states.0
});

pub(super) fn seeds() -> Vec<Vec<u8>> {
    SEEDS.clone()
}

pub(super) fn any_adapter() -> Adapter {
    let read = |seed: &Vec<u8>| {
        folder::with_file("federation", "adapter.safetensors", seed, |path| {
            Some(file::read(path, &BASES[0]).ok()?.adapter)
        })
    };
    Target::named("adapter_file").seeds().iter().find_map(read).unwrap()
}

/// A client that brings the same adapter in every round.
struct Fixed {
    name: &'static str,
    adapter: Adapter,
}

impl Client for Fixed {
    type Error = Infallible;

    fn name(&self) -> &str {
        self.name
    }

    fn train(&mut self, _: usize, _: Option<&Adapter>) -> Result<Contribution, Infallible> {
        Ok(Contribution::from_examples(self.name, self.adapter.clone(), 3))
    }
}

/// The state's file after every round.
#[derive(Default)]
struct Saved(Vec<Vec<u8>>);

impl RoundObserver for Saved {
    fn round_done(&mut self, _: &RoundReport, state: &State) -> ControlFlow<()> {
        folder::with(|folder| {
            let path = folder.join("saved.safetensors");
            state.save(&path).unwrap();
            self.0.push(fs::read(path).unwrap());
        });
        ControlFlow::Continue(())
    }
}
