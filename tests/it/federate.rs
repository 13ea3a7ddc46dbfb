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
