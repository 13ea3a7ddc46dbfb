//! Kills of the coordinator and of clients: at every operation on the store, before it and after it, and at random
//! ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use catelier_rounds::{Error, Result};
use object_store::ObjectStore;
use object_store::memory::InMemory;

use crate::faulty::{Kill, Mortal};
use crate::world::{CLIENTS, World, terms};

/// A step of a round, in a process of its own.
#[derive(Debug, Clone, Copy)]
enum Step {
    Open,
    TakePart(&'static str),
    Close,
}

const STEPS: [Step; 5] =
    [Step::Open, Step::TakePart(CLIENTS[0]), Step::TakePart(CLIENTS[1]), Step::TakePart(CLIENTS[2]), Step::Close];

/// Does a step; what an earlier process has done already is as good.
fn take(step: Step, round: usize, store: Arc<dyn ObjectStore>) -> Result<()> {
    let world = World::at(store);
    match step {
        Step::Open => world.open(round).map(drop),
        Step::TakePart(client) => world.take_part(client).map(drop),
        Step::Close => match world.close(round) {
            Err(Error::NotOpen { round: next }) if next == round + 1 => Ok(()),
            Err(Error::Finished { .. }) => Ok(()),
            closed => closed.map(drop),
        },
    }
}

/// Does a step in processes that are killed as `kills` says, until one of them comes to its end.
fn survive(step: Step, round: usize, store: &Arc<dyn ObjectStore>, mut kills: impl FnMut() -> Kill) {
    loop {
        let kill = kills();
        let process = Mortal::new(store.clone(), kill);
        match take(step, round, process) {
            Ok(()) => return,
            Err(Error::Store { .. }) if kill != Kill::Never => {}
            Err(error) => panic!("{step:?} of round {round}, {kill:?}: {error}"),
        }
    }
}

fn federation(rounds: usize) -> World {
    World::with_terms(Arc::new(InMemory::new()), terms("fedadam", rounds), [7; 16])
}

/// What an undisturbed run leaves.
fn undisturbed(rounds: usize) -> BTreeMap<String, Vec<u8>> {
    let world = federation(rounds);
    (1..=rounds).for_each(|round| drop(world.play(round)));
    world.objects()
}

#[track_caller]
fn assert_same(found: &World, expected: &BTreeMap<String, Vec<u8>>, about: &str) {
    let found = found.objects();
    let names = |objects: &BTreeMap<String, Vec<u8>>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected), "{about}");
    let differing: Vec<_> = found.iter().filter(|(name, bytes)| expected[*name] != **bytes).map(|(n, _)| n).collect();
    assert!(differing.is_empty(), "{about}: {differing:?} differ");
}

#[test]
fn fifty_rounds_with_random_kills_leave_the_bytes_of_an_undisturbed_run() {
    const ROUNDS: usize = 50;
    let (expected, world) = (undisturbed(ROUNDS), federation(ROUNDS));
    let (mut random, mut processes) = (fastrand::Rng::with_seed(20_261_128), 0);
    for round in 1..=ROUNDS {
        for step in STEPS {
            survive(step, round, &world.store, || {
                // More operations than any step has: two of five processes are killed, somewhere.
                let at = random.i64(0..2 * round as i64 + 50);
                processes += 1;
                if random.bool() { Kill::Before(at) } else { Kill::After(at) }
            });
        }
    }
    assert!(processes > ROUNDS * STEPS.len() * 4 / 3, "{processes} processes");
    assert_same(&world, &expected, "after 50 rounds");
}

#[test]
fn a_kill_at_every_operation_of_every_step_leaves_the_same_bytes() {
    const ROUNDS: usize = 2;
    let expected = undisturbed(ROUNDS);
    let before = federation(ROUNDS);
    before.play(1);
    for (index, step) in STEPS.iter().enumerate() {
        let objects = before.objects();
        for number in 0.. {
            let mut lived = false;
            for kill in [Kill::Before(number), Kill::After(number)] {
                let world = World::at(Arc::new(InMemory::new()));
                objects.iter().for_each(|(name, bytes)| world.write(name, bytes.clone()));
                let process = Mortal::new(world.store.clone(), kill);
                let outcome = take(*step, 2, process.clone());
                lived = outcome.is_ok() && process.operations() <= number;
                STEPS[index..].iter().for_each(|step| take(*step, 2, world.store.clone()).unwrap());
                assert_same(&world, &expected, &format!("{step:?}, {kill:?}"));
            }
            if lived {
                assert!(number > 8, "{step:?} has {number} operations");
                break;
            }
        }
        take(*step, 2, before.store.clone()).unwrap();
    }
}
