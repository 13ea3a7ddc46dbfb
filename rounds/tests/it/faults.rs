//! Faults of others: what is wrong is refused by name, and the round goes on with the rest.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use catelier_federation::SentContribution;
use catelier_rounds::{Closed, Error, close, members, status, submit};
use object_store::memory::InMemory;

use crate::faulty::Interrupted;
use crate::world::{CLIENTS, DAY, START, World, key, name, sent, signed, terms, told};

/// A round in which ada and ben take part and cy sends what `change` makes of its contribution.
fn bad_contribution(change: impl Fn(&mut SentContribution)) -> (World, Vec<u8>) {
    let world = World::new("fedavg", 2);
    world.open(1).unwrap();
    world.take_part("ada").unwrap();
    world.take_part("ben").unwrap();
    let mut contribution = sent(&world.fetch().unwrap().client_round, "cy");
    change(&mut contribution);
    (world, contribution.to_bytes().unwrap())
}

/// Writes a contribution past the client's own checks, signed by `signer`.
fn force(world: &World, client: &str, signer: &str, file: &[u8], claimed: impl Fn(&str) -> String) {
    // What an honest client of the same name would have signed, in a federation of its own.
    let honest =
        serde_json::from_slice::<serde_json::Value>(&world.read("rounds/0001/contributions/ada.json")).unwrap();
    let statement = honest["statement"].as_str().unwrap();
    let mut object: serde_json::Value = serde_json::from_str(statement).unwrap();
    let sha256 = catelier_rounds::Digest::of(file).to_string();
    object["client"] = client.into();
    object["tensors"] = serde_json::json!({ "sha256": sha256, "bytes": file.len() });
    object["weight"] = "12".into();
    let statement = claimed(&object.to_string());
    let record = signed(&statement, signer);
    world.write(&format!("rounds/0001/contributions/{client}.{sha256}.safetensors"), file.to_vec());
    world.write(&format!("rounds/0001/contributions/{client}.json"), record);
}

fn as_it_is(statement: &str) -> String {
    statement.to_owned()
}

/// Closes the round: cy is refused for this reason, and the others are in.
#[track_caller]
fn refused_at_closing(world: &World, reason: &str) -> Closed {
    let closed = world.close_late(1).unwrap();
    let found: Vec<_> = closed.refused.iter().filter(|(name, text)| name == "cy" && text.contains(reason)).collect();
    assert_eq!(found.len(), 1, "`{reason}` is not in {:?}", closed.refused);
    let clients: Vec<_> = closed.report.clients.iter().map(|client| client.client.as_str()).collect();
    assert_eq!(clients, ["ada", "ben"]);
    assert!(closed.report.failed.iter().any(|(name, text)| name == "cy" && text.contains(reason)));
    world.open(2).unwrap();
    closed
}

fn map(sent: &mut SentContribution, end: &str, change: impl Fn(&Tensor) -> Tensor) {
    let (_, tensor) = sent.payload.tensors.iter_mut().find(|(name, _)| name.ends_with(end)).unwrap();
    *tensor = change(tensor);
}

#[test]
fn contributions_that_no_rule_can_use_are_refused_by_their_client_and_by_the_coordinator() {
    type Change = fn(&mut SentContribution);
    let cases: [(&str, Change); 11] = [
        ("not finite", |sent| map(sent, ".up", |up| (up / 0.0).unwrap())),
        ("expected values up to 1.0e12", |sent| map(sent, ".up", |up| ((up.ones_like().unwrap()) * 1e20).unwrap())),
        ("expected out and in [4, 5], found [9, 5]", |sent| {
            map(sent, "proj_in.up", |up| Tensor::zeros((9, 2), DType::F32, up.device()).unwrap())
        }),
        ("the tensors make no adapter", |sent| map(sent, ".up", |up| up.flatten_all().unwrap())),
        ("expected rank 2, found 3", |sent| {
            sent.payload = catelier_federation::Payload::default();
            for (module, update) in crate::world::adapter(3, 1).iter() {
                for (name, tensor) in update.tensors() {
                    sent.payload.tensors.insert(format!("{module}.{name}"), tensor.clone());
                }
                sent.payload.alphas.insert(module.to_owned(), 2.0);
            }
        }),
        ("is missing", |sent| drop(sent.payload.tensors.pop_first())),
        ("1 module missing, first `unet.mid_block", |sent| {
            sent.payload.tensors.retain(|name, _| !name.contains("mid_block"));
        }),
        ("1 module that the others lack, first `unet.other.proj_in`", |sent| {
            for name in ["down", "up"] {
                let tensor = sent.payload.tensors[&format!("unet.mid_block.attentions.0.proj_in.{name}")].clone();
                sent.payload.tensors.insert(format!("unet.other.proj_in.{name}"), tensor);
            }
        }),
        ("expected base `v2-0123`, found `v2-4567`", |sent| sent.base_fingerprint = Some("v2-4567".into())),
        ("expected a finite weight above 0, found -1", |sent| sent.weight = -1.0),
        ("it is for round 2, expected 1", |sent| sent.round = 2),
    ];
    for (reason, change) in cases {
        let (world, file) = bad_contribution(change);
        let refused = told(world.submit("cy", file.clone()));
        assert!(
            refused.contains("round 1 would refuse this contribution of `cy`") && refused.contains(reason),
            "{refused}"
        );
        assert!(!world.objects().keys().any(|name| name.contains("cy")), "nothing was sent");
        let weight = SentContribution::from_bytes("cy", file.clone()).unwrap().weight.to_string();
        force(&world, "cy", "cy", &file, |statement| statement.replace("\"12\"", &format!("\"{weight}\"")));
        refused_at_closing(&world, reason);
    }
}

#[test]
fn tensors_that_should_stay_at_home_are_refused() {
    let world = World::new("ffa", 1);
    world.open(1).unwrap();
    CLIENTS[..2].iter().for_each(|client| drop(world.take_part(client).unwrap()));
    let mut contribution = sent(&world.fetch().unwrap().client_round, "cy");
    let down = Tensor::zeros((2, 5), DType::F32, &candle_core::Device::Cpu).unwrap();
    contribution.payload.tensors.insert("unet.mid_block.attentions.0.proj_in.down".into(), down);
    let refused = told(world.submit("cy", contribution.to_bytes().unwrap()));
    assert!(refused.contains("proj_in.down` should have stayed at home"), "{refused}");
}

#[test]
fn a_contribution_far_from_the_others_is_refused_where_the_plan_says_so() {
    let mut terms = terms("fedavg", 2);
    terms.plan.norm_factor = Some(5.0);
    let world = World::with_terms(Arc::new(InMemory::new()), terms, [7; 16]);
    world.open(1).unwrap();
    CLIENTS[..2].iter().for_each(|client| drop(world.take_part(client).unwrap()));
    let mut contribution = sent(&world.fetch().unwrap().client_round, "cy");
    map(&mut contribution, ".up", |up| (up * 1e6).unwrap());
    world.submit("cy", contribution.to_bytes().unwrap()).unwrap();
    refused_at_closing(&world, "above 5 times the median");
}

#[test]
fn sizes_are_refused_before_anything_is_read() {
    let (world, file) = bad_contribution(|_| {});
    let refused = told(world.submit("cy", vec![0; 100_001]));
    assert!(refused.contains("it has 100001 bytes, expected at most 100000"), "{refused}");
    // Claimed and not there: the claim alone is enough.
    force(&world, "cy", "cy", &file, |statement| {
        statement.replace(&format!("\"bytes\":{}", file.len()), "\"bytes\":2147483648")
    });
    refused_at_closing(&world, "it has 2147483648 bytes, expected at most 100000");

    let (world, file) = bad_contribution(|_| {});
    force(&world, "cy", "cy", &file, as_it_is);
    let tensors = world.objects().into_keys().find(|name| name.contains("cy.") && name.ends_with("tensors")).unwrap();
    world.write(&tensors, [file, vec![0; 1]].concat());
    refused_at_closing(&world, "bytes, found");

    let (world, _) = bad_contribution(|_| {});
    world.write("rounds/0001/contributions/cy.json", vec![b' '; 1 << 20]);
    refused_at_closing(&world, "has 1048576 bytes, expected at most 16384");
}

#[test]
fn damaged_and_missing_tensors_are_refused() {
    for (change, reason) in [(true, "expected SHA-256"), (false, "is missing from the place")] {
        let (world, file) = bad_contribution(|_| {});
        world.submit("cy", file.clone()).unwrap();
        let name = world.objects().into_keys().find(|name| name.contains("cy.") && name.ends_with("tensors")).unwrap();
        let mut damaged = file;
        damaged[100] ^= 1;
        if change {
            world.write(&name, damaged)
        } else {
            world.delete(&name)
        }
        refused_at_closing(&world, reason);
    }
}

#[test]
fn signatures_that_are_not_the_members_are_refused() {
    let (world, file) = bad_contribution(|_| {});
    force(&world, "cy", "eve", &file, as_it_is);
    refused_at_closing(&world, &format!("signed by {}", key("eve").public()));

    // A record whose statement was changed after it was signed.
    let (world, file) = bad_contribution(|_| {});
    world.submit("cy", file).unwrap();
    let record = String::from_utf8(world.read("rounds/0001/contributions/cy.json")).unwrap();
    world.write("rounds/0001/contributions/cy.json", record.replace(r#"\"12\""#, r#"\"99\""#).into_bytes());
    refused_at_closing(&world, "does not hold");

    // A weight that is not that of the file.
    let (world, file) = bad_contribution(|_| {});
    force(&world, "cy", "cy", &file, |statement| statement.replace("\"12\"", "\"99\""));
    refused_at_closing(&world, "its weight is 12, and its client signed 99");

    // A member who was removed while the round was open.
    let (world, file) = bad_contribution(|_| {});
    world.submit("cy", file).unwrap();
    members::remove(&world.place, &world.coordinator, &[name("cy")]).unwrap();
    refused_at_closing(&world, "`cy` is no member any more");
}

#[test]
fn replays_in_another_round_under_another_name_or_in_another_federation_are_refused() {
    // The upload of round 1 again in round 2.
    let world = World::new("fedavg", 2);
    world.play(1);
    world.open(2).unwrap();
    CLIENTS[..2].iter().for_each(|client| drop(world.take_part(client).unwrap()));
    for (name, bytes) in world.objects().into_iter().filter(|(name, _)| name.contains("0001/contributions/cy")) {
        world.write(&name.replace("0001", "0002"), bytes);
    }
    let closed = world.close_late(2).unwrap();
    let reason = "`rounds/0002/contributions/cy.json` was signed for round `1`, expected `2`";
    assert!(closed.refused.iter().any(|(name, text)| name == "cy" && text.contains(reason)), "{:?}", closed.refused);

    // Ada's upload under cy's name.
    let (world, _) = bad_contribution(|_| {});
    for (name, bytes) in world.objects().into_iter().filter(|(name, _)| name.contains("contributions/ada")) {
        world.write(&name.replace("/ada", "/cy"), bytes);
    }
    refused_at_closing(&world, &format!("signed by {}", key("ada").public()));

    // Cy's upload to another federation of the same people.
    let other = World::with_terms(Arc::new(InMemory::new()), terms("fedavg", 2), [8; 16]);
    other.open(1).unwrap();
    other.take_part("cy").unwrap();
    let (world, _) = bad_contribution(|_| {});
    for (name, bytes) in other.objects().into_iter().filter(|(name, _)| name.contains("contributions/cy")) {
        world.write(&name, bytes);
    }
    refused_at_closing(&world, "was signed for federation `0808");
}

#[test]
fn names_that_no_client_may_have_are_refused_by_name_and_the_round_goes_on() {
    let (world, _) = bad_contribution(|_| {});
    let long = "x".repeat(300);
    let names = ["a/b.json", "Ada.json", "%2E%2E.json", "a\u{7}.json", &format!("{long}.json"), "eve.json", "x.bin"];
    for name in names {
        world.write(&format!("rounds/0001/contributions/{name}"), b"{}".to_vec());
    }
    let shown = status(&world.place, world.trust()).unwrap().open.unwrap().strangers;
    assert_eq!(shown.len(), names.len(), "{shown:?}");
    let refused = world.close_late(1).unwrap().refused;
    assert_eq!(refused, shown);
    let reason = |name: &str| &refused.iter().find(|(found, _)| found.starts_with(name)).unwrap().1;
    assert!(reason("a/b.json").contains("expected 1 to 64 characters of a-z, 0-9, - and _"));
    assert!(reason("xxx").contains("1 to 64"), "{refused:?}");
    assert!(reason("eve.json").contains("`eve` does not take part"));
    assert!(reason("x.bin").contains("expected NAME.json"));
    assert!(refused.iter().all(|(name, _)| name.len() < 120));
}

/// A reason quotes what a stranger wrote; a record that nobody reads any more would stop the federation.
#[test]
fn long_names_of_tensors_do_not_fill_the_record_of_a_closing() {
    let (world, file) = bad_contribution(|sent| {
        let tensor = sent.payload.tensors.values().next().unwrap().clone();
        sent.payload.tensors.insert(format!("{}.down", "x".repeat(50_000)), tensor);
    });
    assert!(told(world.submit("cy", file.clone())).len() < 1000);
    force(&world, "cy", "cy", &file, as_it_is);
    refused_at_closing(&world, "xxx");
    assert!(world.read("rounds/0001/closing.json").len() < 5000);
}

#[test]
fn a_flood_of_files_neither_hides_a_contribution_nor_fills_the_report() {
    let (world, file) = bad_contribution(|_| {});
    world.submit("cy", file).unwrap();
    (0..1500).for_each(|number| world.write(&format!("rounds/0001/contributions/a{number}.json"), Vec::new()));
    let closed = world.close(1).unwrap();
    assert_eq!(closed.report.clients.len(), 3);
    assert_eq!(closed.refused.len(), 21);
    assert!(closed.refused[20].1.contains("at least"), "{:?}", closed.refused[20]);
}

#[test]
fn records_of_the_coordinator_that_others_changed_are_refused_by_name() {
    let world = World::new("fedavg", 3);
    world.play(1);
    members::remove(&world.place, &world.coordinator, &[name("cy")]).unwrap();
    world.open(2).unwrap();
    CLIENTS[..2].iter().for_each(|client| drop(world.take_part(client).unwrap()));
    let whole = world.objects();
    let other = World::with_terms(Arc::new(InMemory::new()), terms("fedavg", 3), [8; 16]);
    other.play(1);
    other.open(2).unwrap();
    let foreign = other.objects();
    let records = [
        "federation.json",
        "members-0001.json",
        "members-0002.json",
        "rounds/0001/closed.json",
        "rounds/0002/open.json",
    ];
    for record in records {
        for replaced in [b"{}".to_vec(), foreign.get(record).cloned().unwrap_or_default()] {
            world.write(record, replaced.clone());
            for refused in [told(world.close_late(2)), told(world.fetch()), told(world.open(2))] {
                // A federation that was replaced as a whole is missed by the records that are left.
                let names =
                    if record == "federation.json" && replaced.len() > 2 { "members-0001.json" } else { record };
                assert!(refused.contains(names), "{record}: {refused}");
            }
        }
        world.write(record, whole[record].clone());
    }
    for file in ["round.json", "global.safetensors"] {
        let path = format!("rounds/0002/{file}");
        world.write(&path, foreign["rounds/0001/round.json"].clone());
        let refused = told(world.fetch());
        assert!(refused.contains(&format!("`{path}` was changed")), "{refused}");
        world.write(&path, whole[&path].clone());
    }
    // What others build on is gone.
    for (record, missing) in [
        ("rounds/0002/open.json", ""),
        ("rounds/0001/closed.json", "rounds/0001/closed.json"),
        ("members-0002.json", "members-0002.json"),
    ] {
        world.delete(record);
        match missing {
            "" => assert!(matches!(world.fetch(), Err(Error::NotOpen { round: 2 }))),
            missing => assert!(told(world.fetch()).contains(&format!("`{missing}` is missing"))),
        }
        world.write(record, whole[record].clone());
    }
    world.close(2).unwrap();
}

#[test]
fn an_upload_after_the_closing_is_refused_and_changes_nothing() {
    let (world, file) = bad_contribution(|_| {});
    let other = World::at(world.store.clone());
    // The coordinator closes right before the client's record is written.
    let interrupted = Interrupted::new(world.store.clone(), "contributions/cy.json", move || {
        other.close_late(1).unwrap();
    });
    let late = World::at(interrupted);
    let refused = told(late.submit("cy", file.clone()));
    assert!(refused.contains("round 1 has closed"), "{refused}");
    assert!(told(world.submit("cy", file)).contains("round 2 is not open yet"));
    assert!(world.objects().contains_key("rounds/0001/contributions/cy.json"), "it came too late");
    world.open(2).unwrap();
    let state = catelier_federation::State::from_bytes("state", world.read("rounds/0001/state.safetensors")).unwrap();
    assert_eq!(state.history()[0].clients.len(), 2);
}

#[test]
fn a_round_whose_contributions_are_fixed_takes_no_more_and_is_closed_by_any_coordinator() {
    let (world, file) = bad_contribution(|_| {});
    // Killed right after the decision.
    let killed = crate::faulty::Mortal::new(world.store.clone(), crate::faulty::Kill::Never);
    let counted = World::at(killed.clone());
    counted.close_late(1).unwrap();
    let (state, closed) = (world.read("rounds/0001/state.safetensors"), world.read("rounds/0001/closed.json"));
    world.delete("rounds/0001/state.safetensors");
    world.delete("rounds/0001/closed.json");
    assert!(matches!(world.fetch(), Err(Error::Closed { round: 1 })));
    assert!(told(world.submit("cy", file)).contains("round 1 has closed"));
    assert!(status(&world.place, world.trust()).unwrap().open.unwrap().is_closing);
    // Early, and without the clock of the first: nothing is left to decide.
    let again = close(&world.place, &world.coordinator, START, false).unwrap();
    assert!(!again.decided_here && again.missing == [name("cy")]);
    assert!(world.read("rounds/0001/state.safetensors") == state && world.read("rounds/0001/closed.json") == closed);

    // What was fixed is gone or changed: nothing else takes its place.
    world.delete("rounds/0001/state.safetensors");
    world.delete("rounds/0001/closed.json");
    world.delete("rounds/0001/contributions/ada.json");
    assert!(told(world.close(1)).contains("`rounds/0001/contributions/ada.json` is missing"));
    world.write("rounds/0001/contributions/ada.json", world.read("rounds/0001/contributions/ben.json"));
    assert!(told(world.close(1)).contains("`rounds/0001/contributions/ada.json` was changed"));
}

#[test]
fn two_coordinators_who_close_at_once_with_different_views_get_the_same_bytes() {
    let (world, file) = bad_contribution(|_| {});
    let other = World::at(world.store.clone());
    let (sender, receiver) = std::sync::mpsc::channel();
    // Cy's contribution comes when the first coordinator has looked already; the second one sees it, and is faster.
    let interrupted = Interrupted::new(world.store.clone(), "closing.json", move || {
        submit(&other.place, other.trust(), &key("cy"), file.clone()).unwrap();
        sender.send(other.close(1).unwrap()).unwrap();
    });
    let first = close(&World::at(interrupted).place, &world.coordinator, START + 2 * DAY, false).unwrap();
    let second = receiver.recv().unwrap();
    assert!(second.decided_here && !first.decided_here);
    assert_eq!(first.report, second.report);
    assert_eq!(first.report.clients.len(), 3);

    // Both opened at once, too: the second one sees the round of the first.
    let other = World::at(world.store.clone());
    let interrupted = Interrupted::new(world.store.clone(), "open.json", move || drop(other.open(2).unwrap()));
    assert!(!World::at(interrupted).open(9).unwrap().is_new);

    // And members: the slower one is told.
    let other = World::at(world.store.clone());
    let interrupted = Interrupted::new(world.store.clone(), "members-0002.json", move || {
        members::remove(&other.place, &other.coordinator, &[name("ada")]).unwrap();
    });
    let refused = members::remove(&World::at(interrupted).place, &world.coordinator, &[name("ben")]);
    assert!(matches!(refused, Err(Error::MembersChanged)));
}

#[test]
fn an_object_in_the_way_is_refused_by_name() {
    let world = World::new("fedavg", 1);
    world.write("rounds/0001/global.safetensors", b"garbage".to_vec());
    let refused = told(world.open(1));
    assert!(
        refused.contains("`rounds/0001/global.safetensors` is in the place already, with another content"),
        "{refused}"
    );
    world.delete("rounds/0001/global.safetensors");
    world.open(1).unwrap();
    world.write("rounds/0001/contributions/ada.json", b"{}".to_vec());
    let refused = told(world.take_part("ada"));
    assert!(refused.contains("contributions/ada.json` is not usable"), "{refused}");
    world.write("rounds/0001/closing.json", b"{}".to_vec());
    assert!(told(world.close_late(1)).contains("`rounds/0001/closing.json` is not usable"));
}

#[test]
fn another_key_is_no_coordinator() {
    let mut world = World::new("fedavg", 1);
    world.coordinator = key("eve");
    for refused in [
        told(world.open(1)),
        told(world.close(1)),
        told(members::remove(&world.place, &world.coordinator, &[name("ada")])),
    ] {
        assert!(
            refused.contains(&format!("the federation's coordinator is {}", key("coordinator").public())),
            "{refused}"
        );
    }
}
