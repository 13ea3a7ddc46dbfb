//! Averaging from the outside.

#[cfg(unix)]
use std::process::Stdio;

use crate::catelier::Studio;
use crate::train::{SHORT, studio};

fn two_runs(rank: usize) -> Studio {
    let studio = studio();
    studio.done(&format!("{SHORT} --out one"));
    studio.done(&format!("{SHORT} --seed 2 --out two").replace("--rank 2", &format!("--rank {rank}")));
    studio
}

#[test]
fn product_is_exact_where_the_rank_suffices_and_ranks_may_differ() {
    let studio = two_runs(3);
    let aggregate = |rank: &str| {
        let line = format!(
            "federate aggregate --base base --strategy product{rank} --adapter one/adapter.safetensors \
             --adapter two/adapter.safetensors:3 --out mean{}.safetensors --json",
            rank.len()
        );
        let ran = studio.done(&line);
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap()["relative_distance"].as_f64().unwrap()
    };
    assert!(aggregate(":exact") < 1e-5);
    assert!(aggregate("") > 1e-3, "rank 3 cannot hold two different updates of ranks 2 and 3");
    let ran = studio.done("adapter inspect mean6.safetensors --json");
    assert!(ran.stdout.contains("\"ranks\":{\"5\":"), "{}", ran.stdout);
}

#[test]
fn every_offender_is_listed() {
    let studio = two_runs(3);
    let ran = studio.run(
        "federate aggregate --base base --strategy fedavg --adapter one/adapter.safetensors \
         --adapter two/adapter.safetensors:-1 --out mean.safetensors",
    );
    assert_eq!(ran.code, Some(2));
    assert_eq!(
        ran.message(),
        "error: cannot aggregate these adapters\ncause: 1 of 2 contributions cannot be aggregated: `two/adapter.safetensors`: expected a finite weight above 0, found -1, `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k`: expected rank 2, found 3, `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k`: expected alpha 2, found 3\nhint: leave these contributions out, or ask their clients for new ones"
    );
}

/// The metadata of an adapter file.
fn metadata(studio: &Studio, file: &str) -> serde_json::Value {
    let told = studio.done(&format!("adapter inspect {file} --json")).stdout;
    serde_json::from_str::<serde_json::Value>(&told).unwrap()["metadata"].clone()
}

#[test]
fn an_aggregate_says_its_base_its_contributors_and_the_trigger_that_all_share() {
    let studio = two_runs(2);
    studio.with_header("two/adapter.safetensors", "silent.safetensors", &[]);
    let line = "federate aggregate --base base --adapter one/adapter.safetensors --adapter two/adapter.safetensors:3";
    studio.done(&format!("{line} --out same.safetensors"));
    studio.done(&format!("{line} --adapter silent.safetensors --out mixed.safetensors"));
    let [one, same, mixed] =
        ["one/adapter.safetensors", "same.safetensors", "mixed.safetensors"].map(|file| metadata(&studio, file));
    for key in ["catelier.base_fingerprint", "catelier.base_name", "ss_base_model_version"] {
        assert!(one[key].is_string() && one[key] == same[key] && one[key] == mixed[key], "{key}: {mixed}");
    }
    assert_eq!(same["catelier.trigger"], "shs");
    assert!(mixed["catelier.trigger"].is_null(), "one contributor names no trigger");
    let contributors: Vec<serde_json::Value> =
        serde_json::from_str(same["catelier.contributors"].as_str().unwrap()).unwrap();
    assert_eq!(contributors[0]["name"], "one/adapter.safetensors");
    assert_eq!(contributors[0]["hash"], one["sshs_model_hash"]);
    assert_eq!((&contributors[1]["weight"], &contributors[1]["trigger"]), (&3.0.into(), &"shs".into()));
}

#[test]
fn adapters_of_different_bases_are_not_aggregated() {
    let studio = two_runs(2);
    studio.with_header("two/adapter.safetensors", "sd2.safetensors", &[("ss_base_model_version", "sd_v2")]);
    studio.with_header(
        "two/adapter.safetensors",
        "other.safetensors",
        &[("catelier.base_fingerprint", "v2-0123-4567")],
    );
    for (file, part) in [("sd2.safetensors", "family"), ("other.safetensors", "fingerprint")] {
        let line = "federate aggregate --base base --adapter one/adapter.safetensors --adapter";
        let ran = studio.run(&format!("{line} {file} --out mean.safetensors"));
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        let expected =
            format!("error: `{file}` and `one/adapter.safetensors` were trained on different bases: {part} `");
        assert!(ran.message().starts_with(&expected), "{}", ran.message());
        assert!(!studio.path("mean.safetensors").exists());
    }
}

/// A list of replies with these files, each of a client that is named as the file.
fn replies(studio: &Studio, name: &str, files: &[&str]) {
    let reply = |file: &&str| serde_json::json!({"client": file, "file": file, "weight": 2.0});
    studio.write(name, serde_json::to_vec(&files.iter().map(reply).collect::<Vec<_>>()).unwrap());
}

const FILES: [&str; 2] = ["one/adapter.safetensors", "two/adapter.safetensors"];

#[test]
fn a_round_again_gives_the_same_bytes_and_the_state_advances_once() {
    let studio = two_runs(2);
    replies(&studio, "replies.json", &FILES);
    let round = |round: usize, more: &str| {
        format!(
            "federate aggregate --base base --strategy fedadam --replies replies.json --round {round} --state state \
             --out global-{round}.safetensors {more}"
        )
    };
    let read = |name: &str| std::fs::read(studio.path(name)).unwrap();
    let refused = |line: &str, told: &str| {
        let ran = studio.run(line);
        assert!(ran.code == Some(2) && ran.message().contains(told), "{line}:\n{}", ran.stderr);
    };
    refused(&round(1, ""), "--start");
    assert!(!studio.path("state").exists(), "what was refused leaves nothing");
    studio.done("federate aggregate --base base --strategy fedadam --start one/adapter.safetensors --round 0 --state state --next next");
    assert!(studio.path("next/round.json").exists() && studio.path("next/global.safetensors").exists());
    refused(&round(2, ""), "does not hold the state before round 2");
    refused(&round(1, "--start two/adapter.safetensors"), "began with another start");
    refused(&round(2, "--start one/adapter.safetensors"), "leave `--start` out");

    studio.done(&round(1, "--start one/adapter.safetensors --next next"));
    let (global, state, next) =
        (read("global-1.safetensors"), read("state/state-0001.safetensors"), read("next/round.json"));
    refused(&round(1, ""), "exists already");
    studio.done(&round(1, "--next next --force"));
    assert!(read("global-1.safetensors") == global && read("state/state-0001.safetensors") == state);
    assert!(read("next/round.json") == next);

    // The same round with other replies is another result.
    replies(&studio, "replies.json", &FILES[..1]);
    refused(&round(1, "--force"), "round 1 is closed");
    assert!(read("global-1.safetensors") == global && read("state/state-0001.safetensors") == state);
    refused(&round(2, "").replace("fedadam", "fedyogi"), "with another plan");

    studio.done(&round(2, ""));
    assert!(read("global-2.safetensors") != global);
    // The state before the last round is as it was, so that the last round can be closed again.
    assert!(read("state/state-0001.safetensors") == state && !studio.path("state/state-0000.safetensors").exists());
    studio.done(&round(2, "--force"));
    refused(&round(1, "--force"), "does not hold the state before round 1");

    let mut damaged = state.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    studio.write("state/state-0001.safetensors", damaged);
    refused(&round(2, "--force"), "damaged");
}

#[test]
fn every_reply_that_cannot_be_used_is_named_and_the_round_can_go_on_without() {
    let studio = two_runs(3);
    let whole = std::fs::read(studio.path(FILES[0])).unwrap();
    let mut damaged = whole.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    studio.write("damaged.safetensors", damaged);
    studio.write("empty.safetensors", b"");
    studio.write("three.safetensors", &whole);
    studio.write("four.safetensors", &whole);
    let files = ["three.safetensors", "damaged.safetensors", FILES[0], FILES[1], "empty.safetensors", "four.safetensors"];
    replies(&studio, "replies.json", &files);
    let line = "federate aggregate --base base --strategy fedavg --replies replies.json --out mean.safetensors --json";
    let ran = studio.run(line);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    for told in ["3 of 6 contributions", "`damaged.safetensors`: ", "checksum does not hold", "`empty.safetensors`: ", "0 bytes", "expected rank 2, found 3"] {
        assert!(ran.message().contains(told), "{told}: {}", ran.message());
    }
    assert!(!studio.path("mean.safetensors").exists());

    let ran = studio.done(&format!("{line} --skip-refused"));
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let clients = |key: &str| -> Vec<String> {
        report[key].as_array().unwrap().iter().map(|one| one["client"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(clients("accepted"), ["three.safetensors", FILES[0], "four.safetensors"]);
    assert_eq!(clients("refused"), ["damaged.safetensors", "empty.safetensors", FILES[1]]);
    assert!(ran.stderr.contains("left out `empty.safetensors`"), "{}", ran.stderr);
    assert!(report["accepted"][0]["norm"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_client_trains_from_the_next_rounds_folder_and_its_file_is_a_reply() {
    use catelier_workflows::federation::{ClientRound, Contribution};
    let studio = two_runs(2);
    studio.write("plan.toml", "strategy = \"ffa\"\nrounds = 1\nweighting = \"uniform\"\n");
    let line = "federate aggregate --base base --plan plan.toml --state state --next next";
    studio.done(&format!("{line} --start one/adapter.safetensors --round 0"));
    let round = ClientRound::load(&studio.path("next")).unwrap();
    for client in ["ada", "ben"] {
        let adapter = round.global.clone().unwrap();
        let contribution = Contribution { client: client.into(), adapter, weight: 3.0, base_fingerprint: None };
        let sent = round.leaving(contribution, 1).unwrap().unwrap();
        sent.save(&studio.path(&format!("{client}.safetensors"))).unwrap();
    }
    let reply = |client: &str, file: &str| serde_json::json!({"client": client, "file": format!("{file}.safetensors")});
    let list = |replies: &[serde_json::Value]| studio.write("replies.json", serde_json::to_vec(replies).unwrap());
    list(&[reply("ada", "ada"), reply("eve", "ben")]);
    let line = format!("{line} --replies replies.json --round 1 --out global.safetensors --json");
    let ran = studio.run(&line);
    assert!(ran.code == Some(2) && ran.message().contains("`eve`: the contribution is that of `ben`"), "{}", ran.stderr);
    list(&[reply("ada", "ada"), reply("ben", "ben")]);
    let ran = studio.done(&line);
    assert!(ran.stderr.contains("round 1 was the last of the plan"), "{}", ran.stderr);
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["accepted"][1]["weight"], 1.0);
    studio.done("federate aggregate --base base --adapter one/adapter.safetensors --adapter global.safetensors --out both.safetensors");
    let again = line.replace("--round 1", "--round 2");
    assert!(studio.run(&format!("{again} --force")).message().contains("the plan has 1 rounds"));
    for (plan, told) in [("strategy = \"fedsgd\"", "fedsgd"), ("strateg = \"ffa\"", "strateg"), ("proximal = -1.0", "proximal")] {
        studio.write("plan.toml", plan);
        let ran = studio.run(&format!("{line} --force"));
        assert!(ran.code == Some(2) && ran.message().contains(told), "{}", ran.stderr);
    }
}

/// A small federation.
const SIMULATE: &str =
    "federate simulate --artists goldleaf --rounds 2 --local-steps 1 --images 2 --prompts 1 --sampling-steps 3";

#[cfg(unix)]
#[test]
fn an_interrupted_simulation_goes_on_to_the_same_bytes_as_one_that_never_stopped() {
    let studio = Studio::new();
    studio.done(&format!("{SIMULATE} --out whole"));
    let child = studio.command(&format!("{SIMULATE} --out parts")).stderr(Stdio::piped()).spawn().unwrap();
    crate::crash::wait_for("the first round", || studio.path("parts/state.safetensors").exists());
    crate::crash::signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("go on with: catelier federate simulate --resume --out parts"), "{stderr}");

    for (line, refused) in [
        (format!("{SIMULATE} --out parts"), "holds a simulation that is not finished"),
        ("federate simulate --resume --seed 2 --out parts".into(), "`seed` cannot change when a run is resumed"),
    ] {
        let ran = studio.run(&line);
        assert!(ran.code == Some(2) && ran.message().contains(refused), "{}", ran.stderr);
    }
    let ran = studio.done("federate simulate --resume --out parts");
    assert!(!ran.stderr.contains("round 1: "), "the first round is not played again:\n{}", ran.stderr);
    for file in ["global.safetensors", "simulation.json", "goldleaf/round-2/adapter.safetensors"] {
        let read = |out: &str| std::fs::read(studio.path(out).join(file)).unwrap();
        assert!(read("whole") == read("parts"), "`{file}` differs");
    }
}
