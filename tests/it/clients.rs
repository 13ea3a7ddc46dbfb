//! Rounds of a federation from the outside: what a client trains and sends, and federations in which things go wrong.

use std::collections::BTreeMap;
use std::path::Path;

use catelier_numerics::tensor_file::TensorFile;
use catelier_workflows::Session;
use catelier_workflows::adapters::{Adapter, LayerUpdate, file};
use catelier_workflows::base::BaseSource;
use catelier_workflows::federation::{ClientRound, HeadRule, Personal, RoundPlan, SentContribution, State};

use crate::catelier::Studio;
use crate::train::{SHORT, studio};

/// A studio with the adapter of a run, and that adapter.
fn started() -> (Studio, Adapter) {
    let studio = studio();
    studio.done(&format!("{SHORT} --out start"));
    let adapter = read(&studio.path("start/adapter.safetensors"), &studio.path("base"));
    (studio, adapter)
}

fn read(path: &Path, base: &Path) -> Adapter {
    let source = BaseSource::parse(base.to_str().unwrap()).unwrap();
    let modules = source.open(&Session::new(|_| {})).unwrap().modules();
    file::read(path, &modules).unwrap().adapter
}

/// The folder `round` of a plan's first round.
fn open_round(studio: &Studio, plan: RoundPlan, global: Adapter) {
    let state = State::starting_from(global);
    let instructions = plan.configure(1, &state).unwrap();
    let folder = studio.path("round");
    std::fs::create_dir_all(&folder).unwrap();
    ClientRound { plan, instructions, global: state.global().cloned() }.save(&folder).unwrap();
}

fn plan(strategy: &str) -> RoundPlan {
    RoundPlan { strategy: strategy.parse().unwrap(), ..RoundPlan::default() }
}

fn tensors(adapter: &Adapter) -> BTreeMap<String, Vec<f32>> {
    let of_module = |(path, update): (&str, &LayerUpdate)| -> Vec<(String, Vec<f32>)> {
        let values = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
        update.tensors().map(|(name, tensor)| (format!("{path}.{name}"), values(tensor))).collect()
    };
    adapter.iter().flat_map(of_module).collect()
}

#[test]
fn a_client_trains_as_its_round_asks_and_sends_no_more_than_that() {
    let (studio, global) = started();
    open_round(&studio, plan("ffa"), global.clone());
    studio.done(&format!("{SHORT} --round round --client ada --out run"));
    let (before, after) =
        (tensors(&global), tensors(&read(&studio.path("run/adapter.safetensors"), &studio.path("base"))));
    for (name, values) in &before {
        assert_eq!(name.ends_with(".down"), *values == after[name], "{name}");
    }
    let sent = SentContribution::load(&studio.path("run/contribution.safetensors")).unwrap();
    assert_eq!((sent.client.as_str(), sent.round, sent.weight), ("ada", 1, 4.0));
    assert!(sent.base_fingerprint.is_some());
    assert_eq!(sent.payload.tensors.len(), before.len() / 2);
    for (name, tensor) in &sent.payload.tensors {
        assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), after[name], "{name}");
    }
    let file = TensorFile::open(studio.path("run/contribution.safetensors")).unwrap();
    let keys = ["base", "client", "format", "round", "version", "weight"];
    let told: Vec<&str> = file.metadata().keys().map(String::as_str).filter(|key| !key.contains("sha256")).collect();
    assert_eq!(told, keys, "nothing of the images, captions and paths leaves");
}

#[test]
fn an_interrupted_round_goes_on_to_the_same_contribution() {
    let (studio, global) = started();
    open_round(&studio, RoundPlan { proximal: 0.1, ..plan("product") }, global);
    studio.done(&format!("{SHORT} --round round --client ada --out whole"));
    let half = SHORT.replace("--steps 4", "--steps 2");
    // A constant rate, so that the first half does not depend on the number of steps.
    studio.done(&format!("{half} --round round --client ada --out parts"));
    studio.done("train --resume --steps 4 --round round --client ada --out parts");
    let sent = |run: &str| std::fs::read(studio.path(run).join("contribution.safetensors")).unwrap();
    assert!(sent("whole") == sent("parts"));
    let ran = studio.run("train --resume --steps 6 --out parts");
    assert!(ran.code == Some(2) && ran.stderr.contains("another start adapter"), "{}", ran.stderr);
}

#[test]
fn head_and_body_are_trained_in_turn_and_the_head_stays_at_home() {
    let (studio, global) = started();
    let head = "mid_block.*".parse().unwrap();
    let plan = RoundPlan { personal: Some(Personal { rule: HeadRule::Fedrep, head }), ..plan("fedavg") };
    open_round(&studio, plan, global.clone());
    studio.done(&format!("{SHORT} --round round --client ada --out run"));
    let [first, second] = ["phase-1", "phase-2"]
        .map(|phase| tensors(&read(&studio.path("run").join(phase).join("adapter.safetensors"), &studio.path("base"))));
    for (name, start) in tensors(&global) {
        let is_head = name.contains("mid_block.");
        assert_eq!(start == first[&name], !is_head, "{name}");
        assert_eq!(first[&name] == second[&name], is_head, "{name}");
    }
    let sent = SentContribution::load(&studio.path("run/contribution.safetensors")).unwrap();
    assert!(sent.payload.tensors.keys().all(|name| !name.contains("mid_block.")));
    studio.done(&format!("{SHORT} --round round --client ada --own run/phase-2/adapter.safetensors --out again"));
    let ran = studio.run("train --resume --round round --client ada --out run");
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
}

#[test]
fn a_round_that_cannot_be_used_is_refused_before_the_training() {
    let (studio, global) = started();
    let line = format!("{SHORT} --round round --client ada --out run");
    let ran = studio.run(&line);
    assert!(ran.code == Some(2) && ran.message().contains("cannot take part in `round`"), "{}", ran.stderr);
    open_round(&studio, plan("product"), global);
    let path = studio.path("round/global.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let ran = studio.run(&line);
    assert!(ran.code == Some(2) && ran.message().contains("its checksum does not hold"), "{}", ran.stderr);
    assert!(!studio.path("run").exists());
    assert_eq!(studio.run(&format!("{SHORT} --round round --out run")).code, Some(2), "a client has a name");
}

/// A federation of a blink.
const SIMULATE: &str =
    "federate simulate --rounds 2 --local-steps 1 --images 2 --prompts 1 --sampling-steps 2 --json --out federation";

fn played(studio: &Studio, flags: &str) -> serde_json::Value {
    serde_json::from_str(&studio.done(&format!("{SIMULATE} {flags}")).stdout).unwrap()
}

#[test]
fn a_federation_goes_on_without_those_who_drop_out_or_send_poison() {
    let studio = Studio::new();
    let table = played(
        &studio,
        "--artists chalk,neon,sumi,wash --drop-out 0.25 --poisoned 1 --poison not-finite --stragglers 0.5 --late vase",
    );
    for round in table["rounds"].as_array().unwrap() {
        let failed: Vec<String> = round["failed"].as_array().unwrap().iter().map(|one| one.to_string()).collect();
        let (clients, dropped) = (round["clients"].as_array().unwrap().len(), failed.len());
        assert_eq!(clients + dropped, 4, "{round}");
        let told = failed.concat();
        assert!(told.contains("dropped out") || told.contains("not finite"), "{told}");
        assert!(round["clients"].as_array().unwrap().iter().all(|client| client["client"] != "chalk"));
    }
    let adapters: Vec<&str> =
        table["scores"].as_array().unwrap().iter().map(|score| score["adapter"].as_str().unwrap()).collect();
    assert!(adapters.ends_with(&["late", "late alone"]), "{adapters:?}");
}

#[test]
fn a_head_stays_at_home_and_is_tuned_there() {
    let studio = Studio::new();
    let table =
        played(&studio, "--artists neon,wash --head up_blocks.2.* --tuning-steps 1 --baselines --score-every 1");
    let rows = table["scores"].as_array().unwrap();
    let adapters: Vec<&str> = rows[2..7].iter().map(|score| score["adapter"].as_str().unwrap()).collect();
    assert_eq!(adapters, ["own", "averaged", "tuned", "alone", "together"]);
    assert!(rows[..2].iter().all(|row| row["round"] == 1), "{rows:?}");
    let bytes = std::fs::read(studio.path("federation/state.safetensors")).unwrap();
    assert!(!bytes.is_empty());
}

#[test]
fn knowledge_travels_in_place_of_adapters_of_different_ranks() {
    let studio = Studio::new();
    let flags = "--artists chalk,neon,wash --exchange knowledge --ranks 2,4 --public-images 2 --public-draws 1 \
                 --distil-steps 1 --poisoned 1 --poison not-finite";
    let table = played(&studio, flags);
    for round in table["rounds"].as_array().unwrap() {
        assert_eq!(round["clients"].as_array().unwrap().len(), 2, "{round}");
        assert!(round["failed"].to_string().contains("not finite"), "{round}");
        assert!(round["relative_distance"].as_f64().unwrap() > 0.0);
    }
    let ran = studio.run(&format!("{SIMULATE} --artists neon,wash --exchange knowledge --clip 1"));
    assert!(ran.code == Some(2) && ran.stderr.contains("`clip` has no effect"), "{}", ran.stderr);
}

#[test]
fn federations_that_cannot_be_played_are_refused() {
    let studio = Studio::new();
    for (flags, told) in [
        ("--artists neon,wash --drop-out 0.9", "leaves none"),
        ("--artists neon,wash --poisoned 2", "2 of 2 artists are poisoned"),
        ("--artists neon,wash --noise 1", "without `clip`"),
        ("--artists neon,wash --late neon", "cannot join late"),
        ("--artists neon,wash --strategy krum:1", "needs 5 artists"),
        ("--artists neon,wash --head nowhere.*", "nowhere"),
    ] {
        let ran = studio.run(&format!("{SIMULATE} {flags}"));
        assert!(ran.code == Some(2) && ran.stderr.contains(told), "{flags}: {:?} {}", ran.code, ran.stderr);
    }
}
