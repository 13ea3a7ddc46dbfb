//! Memory: the plan, the refusals, and that a plan changes no bit of the result.

use std::fs;

use crate::catelier::Studio;
use crate::train::{EMBEDDED, SHORT, studio};

/// Flags of `plan` for the short run.
fn plan(studio: &Studio, flags: &str) -> serde_json::Value {
    let short = EMBEDDED.replace("train", "plan");
    serde_json::from_str(&studio.done(&format!("{short} --json {flags}")).stdout).unwrap()
}

#[test]
fn a_plan_says_what_a_run_will_take() {
    let studio = studio();
    let plan = plan(&studio, "--memory-limit 8GB");
    assert_eq!((&plan["images"], &plan["steps"], &plan["epochs"]), (&4.into(), &4.into(), &1.0.into()));
    assert!(plan["gflop_per_step"].as_f64().unwrap() > 1.0);
    assert!(plan["seconds_per_step_at_least"].as_f64().unwrap() > 0.0);
    assert_eq!(plan["memory"]["limit_bytes"], 8_000_000_000u64);
    assert_eq!(plan["memory"]["recomputed_blocks"].as_array().unwrap().len(), 0);
    let peak = plan["memory"]["peak_bytes"].as_u64().unwrap();
    assert!(peak > plan["memory"]["weight_bytes"].as_u64().unwrap() && peak < 1_000_000_000, "{peak}");
}

#[test]
fn a_run_that_recomputes_blocks_learns_the_same_to_the_last_bit() {
    let studio = studio();
    let peak = plan(&studio, "")["memory"]["peak_bytes"].as_u64().unwrap();
    let limit = format!("--memory-limit {}B", peak - 2_000_000);
    let tight = plan(&studio, &limit);
    let recomputed = tight["memory"]["recomputed_blocks"].as_array().unwrap().clone();
    assert!(
        !recomputed.is_empty() && (recomputed.len() as u64) < tight["memory"]["blocks"].as_u64().unwrap(),
        "{tight}"
    );
    let told = studio.done(&format!("{} {limit}", EMBEDDED.replace("train", "plan"))).stdout;
    for path in recomputed {
        let block = path.as_str().unwrap().rsplit("_blocks.").next().unwrap();
        let name = block.split_once('.').map_or(block, |(_, name)| name);
        assert!(told.contains(name), "{path} is not in:\n{told}");
    }
    studio.done(&format!("{EMBEDDED} --out free"));
    let ran = studio.done(&format!("{EMBEDDED} {limit} --out tight"));
    assert!(ran.stderr.contains("blocks are recomputed"), "{}", ran.stderr);
    studio.done(&format!("{EMBEDDED} --gradient-checkpointing --out all"));
    let factors = |run: &str| crate::train::tensors(&studio, run);
    assert!(factors("free") == factors("tight") && factors("free") == factors("all"));
}

#[test]
fn a_run_that_cannot_fit_is_refused_before_it_begins() {
    let studio = studio();
    let ran = studio.run(&format!("{SHORT} --memory-limit 20MB --out run"));
    assert_eq!(ran.code, Some(2));
    let message = ran.message();
    assert!(message.contains("even when nothing is kept") && message.contains("the limit is 20 MB"), "{message}");
    assert!(message.contains("hint: lower `--resolution` or `--batch`"), "{message}");
    assert!(!studio.path("run/adapter.safetensors").exists());
}

#[test]
fn an_amount_of_memory_has_a_unit() {
    let studio = studio();
    let ran = studio.run(&format!("{SHORT} --memory-limit much --out run"));
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.message().contains("invalid value 'much' for '--memory-limit <SIZE>': not an amount of memory"),
        "{}",
        ran.message()
    );
}

#[test]
fn a_run_on_cached_draws_resumes_to_the_same_bits() {
    let studio = studio();
    studio.done(&format!("{SHORT} --cat-cached-draws 2 --out whole"));
    // The flag's former name.
    studio.done(&format!("{SHORT} --cat-bank 2 --out parts").replace("--steps 4", "--steps 2"));
    studio.done("train --resume --steps 4 --out parts");
    assert!(crate::train::tensors(&studio, "whole") == crate::train::tensors(&studio, "parts"));
}

#[test]
fn the_cat_term_can_be_taken_in_some_steps_alone() {
    let studio = studio();
    studio.done(&format!("{SHORT} --cat-every 2 --out run"));
    let metrics = fs::read_to_string(studio.path("run/metrics.jsonl")).unwrap();
    let has_cat = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["cat"].is_number();
    assert_eq!(metrics.lines().map(has_cat).collect::<Vec<_>>(), [true, false, true, false]);
}
