//! Files of rounds: a round that travels through files equals one in this process, and bad files are refused by name.

use std::path::Path;

use catelier_adapters::Adapter;
use catelier_federation::{
    ClientRound, Contribution, Error, NoiseAt, Privacy, RoundPlan, SentContribution, State, Strategy,
};
use tempfile::tempdir;

use crate::adapters::{adapter, tensors};

const CLIENTS: [(&str, u64); 3] = [("ada", 1), ("ben", 2), ("cy", 3)];

/// A trained adapter: the shared tensors are the client's own, the others those of the global adapter.
fn trained(round: &ClientRound, own: &Adapter) -> Adapter {
    let (roles, global) = (&round.instructions.roles, round.global.as_ref().unwrap());
    let shared = roles.names(global, catelier_federation::Role::Shared);
    let pick = |(module, update): (&str, &catelier_adapters::LayerUpdate)| {
        let own = own.get(module).unwrap();
        let update = update.try_map(|name, tensor| match shared.contains(&format!("{module}.{name}")) {
            true => Ok::<_, candle_core::Error>(own.get(name).unwrap().clone()),
            false => Ok(tensor.clone()),
        });
        (module.to_owned(), update.unwrap())
    };
    global.iter().map(pick).collect()
}

fn contribution(round: &ClientRound, (name, seed): (&str, u64)) -> Contribution {
    let adapter = trained(round, &adapter(2, 2.0, seed));
    Contribution { client: name.into(), adapter, weight: seed as f64, base_fingerprint: Some("base".into()) }
}

fn round(strategy: &str) -> ClientRound {
    let plan = RoundPlan { strategy: strategy.parse().unwrap(), ..RoundPlan::default() };
    let state = State::starting_from(adapter(2, 2.0, 9));
    let instructions = plan.configure(1, &state).unwrap();
    ClientRound { plan, instructions, global: state.global().cloned() }
}

fn through_files(folder: &Path, round: &ClientRound, client: (&str, u64)) -> SentContribution {
    round.save(folder).unwrap();
    let round = ClientRound::load(folder).unwrap();
    let path = folder.join("contribution.safetensors");
    round.leaving(contribution(&round, client), 5).unwrap().unwrap().save(&path).unwrap();
    SentContribution::load(&path).unwrap()
}

#[test]
fn a_round_through_files_equals_one_in_this_process() {
    let folder = tempdir().unwrap();
    for strategy in ["fedavg", "product", "ffa", "rolora", "fedsa", "ewwa-adam", "median"] {
        let round = round(strategy);
        let memory = catelier_federation::Memory::new();
        let aggregate = |contributions: &[Contribution]| {
            let (aggregate, _) = round.plan.aggregate(1, round.global.as_ref(), contributions, &memory).unwrap();
            tensors(&aggregate.adapter)
        };
        let sent = CLIENTS.map(|client| through_files(folder.path(), &round, client));
        assert!(sent.iter().all(|sent| sent.round == 1 && sent.base_fingerprint.as_deref() == Some("base")));
        let arrived = sent.map(|sent| sent.complete(round.global.as_ref()).unwrap());
        let here = CLIENTS.map(|client| {
            let own = contribution(&round, client);
            round.plan.at_the_border(&round.instructions, own, round.global.as_ref()).unwrap().unwrap()
        });
        assert_eq!(aggregate(&arrived), aggregate(&here), "{strategy}");
    }
}

#[test]
fn only_shared_tensors_are_in_the_file() {
    let folder = tempdir().unwrap();
    let sent = through_files(folder.path(), &round("ffa"), CLIENTS[0]);
    assert!(!sent.payload.tensors.is_empty() && sent.payload.tensors.keys().all(|name| name.ends_with(".up")));
}

/// The plan's seed is known to everybody, so noise drawn from it could be taken away again.
#[test]
fn noise_comes_from_the_clients_own_seed() {
    let privacy = Privacy { clip: 1.0, noise: 1.0, at: NoiseAt::Client, seed: 5 };
    let mut round = round("fedavg");
    round.plan.privacy = Some(privacy);
    let sent = |seed: u64| {
        let sent = round.leaving(contribution(&round, CLIENTS[0]), seed).unwrap().unwrap();
        tensors(&sent.complete(None).unwrap().adapter)
    };
    assert_eq!(sent(6), sent(6));
    assert_ne!(sent(6), sent(7));
}

#[test]
fn a_damaged_or_foreign_file_is_refused_by_name() {
    let folder = tempdir().unwrap();
    let round = round("product");
    through_files(folder.path(), &round, CLIENTS[0]);
    for name in ["global.safetensors", "contribution.safetensors", "round.json"] {
        let path = folder.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        let last = damaged.len() - 3;
        damaged[last] ^= 1;
        damaged[0] ^= u8::from(name == "round.json");
        std::fs::write(&path, &damaged).unwrap();
        let error = match name {
            "contribution.safetensors" => SentContribution::load(&path).unwrap_err(),
            _ => ClientRound::load(folder.path()).unwrap_err(),
        };
        assert!(matches!(&error, Error::File { path: found, .. } if *found == path), "{name}: {error}");
        assert!(error.hint().is_some());
        std::fs::write(&path, whole).unwrap();
    }
    let error = SentContribution::load(&folder.path().join("global.safetensors")).unwrap_err();
    assert!(error.to_string().contains("catelier federation adapter"), "{error}");
}

#[test]
fn a_round_that_asks_for_more_than_a_round_is_refused() {
    let folder = tempdir().unwrap();
    round("product").save(folder.path()).unwrap();
    let path = folder.path().join("round.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for part in ["{\n  \"version\"", "\"plan\": {\n    \"strategy\"", "\"instructions\": {\n    \"round\""] {
        assert_eq!(text.matches(part).count(), 1, "{part}");
        let (beginning, key) = part.rsplit_once('"').and_then(|(rest, _)| rest.rsplit_once('"')).unwrap();
        let asking = format!("{beginning}\"images\": \"/home\", \"{key}\"");
        std::fs::write(&path, text.replace(part, &asking)).unwrap();
        let error = ClientRound::load(folder.path()).unwrap_err();
        assert!(error.to_string().contains("images"), "{part}: {error}");
    }
}

#[test]
fn a_round_without_a_global_adapter_and_one_with_a_merged_update_come_back() {
    let folder = tempdir().unwrap();
    let mut plain = round("product");
    plain.global = None;
    plain.save(folder.path()).unwrap();
    assert!(ClientRound::load(folder.path()).unwrap().global.is_none());

    let plan = RoundPlan { strategy: Strategy::Flora, rounds: 2, ..RoundPlan::default() };
    let state = State::starting_from(adapter(2, 2.0, 9));
    let merging =
        ClientRound { instructions: plan.configure(2, &state).unwrap(), plan, global: state.global().cloned() };
    merging.save(folder.path()).unwrap();
    let back = ClientRound::load(folder.path()).unwrap();
    assert_eq!(tensors(back.instructions.merged.as_ref().unwrap()), tensors(state.global().unwrap()));
    assert_eq!(back.instructions.start, merging.instructions.start);
}
