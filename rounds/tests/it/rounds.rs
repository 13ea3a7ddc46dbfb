//! Whole rounds, and their rules.

use std::sync::Arc;

use catelier_federation::{ClientRound, NoiseAt, Participation, Privacy, RoundPlan, State, Weighting};
use catelier_rounds::{Error, Remembered, Sent, Trust, close, create, fetch, members, result, status};
use object_store::memory::InMemory;

use crate::world::{CLIENTS, DAY, START, World, adapter, bits, distance, key, name, sent, terms, told};

#[test]
fn rounds_over_a_place_equal_rounds_in_one_process() {
    for strategy in ["fedavg", "product", "fedadam", "ffa", "rolora", "flora", "fedex", "median", "ewwa-adam"] {
        let world = World::new(strategy, 3);
        let plan = RoundPlan { strategy: strategy.parse().unwrap(), rounds: 3, ..RoundPlan::default() };
        let mut state = State::starting_from(adapter(2, 9));
        for number in 1..=3 {
            world.open(number).unwrap();
            let round = world.fetch().unwrap().client_round;
            let here = CLIENTS.map(|client| sent(&round, client).complete(state.global()).unwrap());
            let source = catelier_federation::InMemory::new(&here);
            let contributions = catelier_federation::Contributions::read(&source).unwrap();
            plan.close_round(&mut state, &contributions, Vec::new()).unwrap();
            CLIENTS.iter().for_each(|client| drop(world.take_part(client).unwrap()));
            assert_eq!(world.close(number).unwrap().report, *state.history().last().unwrap(), "{strategy}");
        }
        assert!(world.read("rounds/0003/state.safetensors") == state.to_bytes().unwrap(), "{strategy}");
        assert!(matches!(world.open(4), Err(Error::Finished { rounds: 3 })));
        assert!(matches!(world.fetch(), Err(Error::Finished { rounds: 3 })));
        let outcome = result(&world.place, world.trust()).unwrap();
        assert_eq!(outcome.completed, 3);
        if !matches!(strategy, "fedex") {
            assert!(bits(&outcome.adapter) == bits(state.global().unwrap()), "{strategy}");
        }
    }
}

#[test]
fn a_repeated_step_changes_nothing() {
    let world = World::new("product", 2);
    assert!(world.open(1).unwrap().is_new);
    assert!(!world.open(5).unwrap().is_new, "opened again, and later");
    assert!(world.take_part("ada").unwrap().is_new);
    let before = world.objects();
    assert!(!world.take_part("ada").unwrap().is_new);
    members::add(&world.place, &world.coordinator, &[(name("ada"), key("ada").public())]).unwrap();
    assert!(world.objects() == before);
}

#[test]
fn a_second_contribution_of_a_client_is_refused() {
    let world = World::new("product", 1);
    world.open(1).unwrap();
    world.take_part("ada").unwrap();
    let mut other = sent(&world.fetch().unwrap().client_round, "ada");
    other.weight = 99.0;
    let refused = told(world.submit("ada", other.to_bytes().unwrap()));
    assert!(refused.contains("`ada` has sent another contribution to round 1"), "{refused}");
}

#[test]
fn a_round_closes_when_all_are_there_or_after_its_deadline_or_on_demand() {
    let world = World::new("product", 3);
    world.open(1).unwrap();
    world.take_part("ada").unwrap();
    world.take_part("ben").unwrap();
    let early = told(world.close(1));
    assert!(early.contains("round 1 can be closed in 11 h 59 min or when all have sent: `cy` missing"), "{early}");
    let closed = world.close_late(1).unwrap();
    assert_eq!((closed.report.clients.len(), &closed.missing[..]), (2, &[name("cy")][..]));
    assert!(closed.decided_here);

    world.open(2).unwrap();
    world.take_part("ada").unwrap();
    world.take_part("cy").unwrap();
    close(&world.place, &world.coordinator, START, true).unwrap();

    world.open(3).unwrap();
    CLIENTS.iter().for_each(|client| drop(world.take_part(client).unwrap()));
    assert!(world.close(3).unwrap().missing.is_empty());
}

#[test]
fn without_a_quorum_a_round_stays_open() {
    let world = World::new("product", 1);
    world.open(1).unwrap();
    world.take_part("ada").unwrap();
    for early in [false, true] {
        let refused = told(close(&world.place, &world.coordinator, START + 9 * DAY, early));
        assert!(refused.contains("has 1 usable contributions, and its quorum is 2; missing: `ben`, `cy`"), "{refused}");
    }
    world.take_part("ben").unwrap();
    world.close_late(1).unwrap();
}

/// The rule says so before anything is fixed.
#[test]
fn a_rule_that_needs_more_contributions_leaves_the_round_open() {
    let world = World::new("krum:1", 1);
    world.open(1).unwrap();
    CLIENTS.iter().for_each(|client| drop(world.take_part(client).unwrap()));
    let refused = told(world.close(1));
    assert!(refused.contains("needs 5 contributions, found 3"), "{refused}");
    assert!(!world.objects().contains_key("rounds/0001/closing.json"));
}

/// Clocks differ: whatever a client's clock shows, the coordinator's decides, and what is there when it closes counts.
#[test]
fn the_deadline_is_judged_by_the_clock_of_the_coordinator() {
    let world = World::new("product", 2);
    world.open(1).unwrap();
    world.take_part("ada").unwrap();
    // Long after the deadline, for everybody but the coordinator, who has not closed yet.
    world.take_part("ben").unwrap();
    assert!(matches!(world.close(1), Err(Error::TooEarly { .. })));
    // A coordinator's clock that went back by a year.
    assert!(matches!(
        close(&world.place, &world.coordinator, START - 365 * DAY, false),
        Err(Error::TooEarly { seconds, .. }) if seconds > 365 * DAY
    ));
    assert_eq!(world.close_late(1).unwrap().report.clients.len(), 2);
    // An opening at the end of all clocks.
    let opened = catelier_rounds::open(&world.place, &world.coordinator, u64::MAX).unwrap();
    assert_eq!(opened.deadline, u64::MAX);
}

#[test]
fn members_come_and_go_between_rounds() {
    let world = World::new("product", 3);
    world.play(1);
    members::remove(&world.place, &world.coordinator, &[name("cy")]).unwrap();
    assert_eq!(world.open(2).unwrap().participants, [name("ada"), name("ben")]);
    assert!(told(world.take_part("cy")).contains("is no member's"));
    members::add(&world.place, &world.coordinator, &[(name("dee"), key("dee").public())]).unwrap();
    assert!(told(world.take_part("dee")).contains("`dee` does not take part in round 2"));
    world.take_part("ada").unwrap();
    world.take_part("ben").unwrap();
    world.close(2).unwrap();
    assert!(world.open(3).unwrap().participants.contains(&name("dee")));

    for (new, reason) in
        [(("ada", "dee"), "`ada` is a member already"), (("eve", "ada"), "is that of the member `ada`")]
    {
        let new = [(name(new.0), key(new.1).public())];
        let refused = told(members::add(&world.place, &world.coordinator, &new));
        assert!(refused.contains(reason), "{refused}");
    }
    let refused = told(members::remove(&world.place, &world.coordinator, &[name("cy")]));
    assert!(refused.contains("`cy` is no member"), "{refused}");
    assert!(world.objects().contains_key("members-0003.json"));
}

#[test]
fn a_share_of_the_members_is_drawn_anew_in_every_round() {
    let mut terms = terms("product", 8);
    terms.plan.participation = Participation::Drawn { share: 0.7, seed: 3 };
    let world = World::with_terms(Arc::new(InMemory::new()), terms, [7; 16]);
    let mut drawn = Vec::new();
    for number in 1..=8 {
        let participants = world.open(number).unwrap().participants;
        participants.iter().for_each(|client| drop(world.take_part(client.as_str()).unwrap()));
        world.close(number).unwrap();
        drawn.push(participants);
    }
    assert!(drawn.iter().all(|drawn| drawn.len() == 2) && drawn.iter().any(|other| *other != drawn[0]));
}

#[test]
fn terms_that_no_round_can_keep_are_refused() {
    let refused = |change: fn(&mut catelier_rounds::Terms)| {
        let mut terms = terms("product", 2);
        change(&mut terms);
        let world = World::at(Arc::new(InMemory::new()));
        let refused = told(create(&world.place, &world.coordinator, [7; 16], terms, None, START));
        assert!(world.objects().is_empty());
        refused
    };
    assert!(refused(|terms| terms.plan.rounds = 0).contains("rounds: expected 1 to 9999, found 0"));
    assert!(refused(|terms| terms.plan.rounds = 10_000).contains("found 10000"));
    assert!(refused(|terms| terms.quorum = 0).contains("quorum"));
    assert!(refused(|terms| terms.most_bytes = 3 << 30).contains("size of a contribution"));
    assert!(refused(|terms| terms.plan.proximal = -1.0).contains("proximal"));
    assert!(refused(|terms| terms.plan.strategy = "fedadam".parse().unwrap()).contains("there is none"));
    assert!(
        refused(|terms| (terms.plan.strategy, terms.plan.secure_aggregation) = ("fedavg".parse().unwrap(), true))
            .contains("secure aggregation")
    );
    let world = World::new("product", 1);
    let again = told(create(&world.place, &key("eve"), [8; 16], terms("product", 1), None, START));
    assert!(again.contains("there is a federation in `memory` already"), "{again}");
    members::remove(&world.place, &world.coordinator, &[name("ada"), name("ben")]).unwrap();
    assert!(told(world.open(1)).contains("round 1 has 1 participants, and its quorum is 2"));
}

/// Everybody can read the plan, so noise from its seed could be taken away again.
#[test]
fn noise_on_the_server_comes_from_the_key_of_the_coordinator() {
    let mut terms = terms("fedavg", 1);
    terms.plan.weighting = Weighting::Uniform;
    terms.plan.privacy = Some(Privacy { clip: 100.0, noise: 0.1, at: NoiseAt::Server, seed: 77 });
    let played = |coordinator: &str| {
        let mut world = World::at(Arc::new(InMemory::new()));
        world.coordinator = key(coordinator);
        create(&world.place, &world.coordinator, [7; 16], terms.clone(), Some(adapter(2, 9)), START).unwrap();
        let new = CLIENTS.map(|client| (name(client), key(client).public()));
        members::add(&world.place, &world.coordinator, &new).unwrap();
        world.play(1);
        assert!(String::from_utf8(world.read("federation.json")).unwrap().contains(r#"\"seed\":0"#));
        result(&world.place, world.trust()).unwrap().adapter
    };
    assert!(bits(&played("one")) == bits(&played("one")));
    assert!(distance(&played("one"), &played("two")) > 1.0);
}

#[test]
fn the_status_tells_who_has_sent_and_who_is_missing() {
    let world = World::new("product", 2);
    let before = status(&world.place, Trust::Nothing).unwrap();
    assert!(before.open.is_none() && !before.is_trusted && before.members.len() == 3);
    world.open(1).unwrap();
    world.take_part("ben").unwrap();
    world.write("rounds/0001/contributions/cy.json", b"{}".to_vec());
    world.write("rounds/0001/contributions/eve.json", b"{}".to_vec());
    let open = status(&world.place, world.trust()).unwrap().open.unwrap();
    assert_eq!((open.round, open.contributions(), open.is_closing), (1, 1, false));
    assert_eq!(open.participants[0].sent, Sent::Nothing);
    assert!(matches!(&open.participants[1].sent, Sent::Contribution { weight, .. } if weight == "11"));
    assert!(
        matches!(&open.participants[2].sent, Sent::Refused { reason } if reason.starts_with("its record is not usable: no signed record"))
    );
    assert_eq!(open.strangers[0].0, "eve.json");
    assert!(serde_json::to_string(&open).unwrap().contains(r#"{"client":"ada","sent":"nothing"}"#));
}

#[test]
fn a_client_knows_the_federation_again_and_believes_no_other() {
    let world = World::new("product", 3);
    world.play(1);
    let old = world.objects();
    world.open(2).unwrap();
    let fetched = world.fetch().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fetched.save(folder.path()).unwrap();
    let saved = ClientRound::load(folder.path()).unwrap();
    assert!(bits(saved.global.as_ref().unwrap()) == bits(fetched.client_round.global.as_ref().unwrap()));
    assert!(std::fs::read(folder.path().join("federation.json")).unwrap() == world.read("federation.json"));
    assert!(matches!(fetch(&world.place, Trust::Nothing), Err(Error::NotPinned { .. })));
    let stranger = Trust::Key(key("eve").public());
    assert!(matches!(fetch(&world.place, stranger), Err(Error::Coordinator { .. })));
    let remembered = fetched.remembered;
    fetch(&world.place, Trust::Remembered(&remembered)).unwrap();

    // The same coordinator, another federation.
    let other = World::with_terms(Arc::new(InMemory::new()), terms("fedavg", 3), [8; 16]);
    other.open(1).unwrap();
    assert!(told(fetch(&other.place, Trust::Remembered(&remembered))).contains("was replaced"));

    // The same federation as it was before.
    let earlier = World::at(Arc::new(InMemory::new()));
    old.into_iter().for_each(|(name, bytes)| earlier.write(&name, bytes));
    let refused = told(fetch(&earlier.place, Trust::Remembered(&remembered)));
    assert!(refused.contains("the place holds 1 rounds, and round 2 was there before"), "{refused}");

    let text = world.read("federation.json");
    assert_eq!(Remembered::from_record("federation.json", &text, 2).unwrap().coordinator(), world.coordinator.public());
    assert!(Remembered::from_record("federation.json", &text[1..], 2).is_err());
}
