//! Ctrl-C, SIGTERM and SIGHUP: what a stopped command leaves, says and exits with.
#![cfg(unix)]

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::catelier::{Ran, Studio};
use crate::crash::{lines, signal, wait_for};
use crate::train::{EMBEDDED, SHORT, studio};

/// A run of a second or a few that can be stopped in its middle.
const RUN: &str = "train --base base --images art --trigger shs --batch 1 --rank 2 --steps 60 --drift-every 0";

fn start(studio: &Studio, line: &str) -> Child {
    studio.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Sends `name` to a command and waits for its end.
fn stop(studio: &Studio, child: Child, name: &str) -> Ran {
    signal(&child, name);
    Ran::from(child.wait_with_output().unwrap(), &studio.path(""))
}

/// What the header of the adapter in `run` says about `steps`.
fn steps_in_header(studio: &Studio, run: &str) -> u64 {
    let told = studio.done(&format!("adapter inspect {run}/adapter.safetensors --json")).stdout;
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let settings: serde_json::Value =
        serde_json::from_str(told["metadata"]["catelier.settings"].as_str().unwrap()).unwrap();
    settings["steps"].as_u64().unwrap()
}

#[test]
fn a_stopped_run_claims_the_steps_that_it_made_and_goes_on_to_the_same_bytes() {
    let studio = studio();
    studio.done(&format!("{RUN} --out whole"));
    for (name, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let run = format!("run{name}");
        let child = start(&studio, &format!("{RUN} --out {run}"));
        let metrics = studio.path(&run).join("metrics.jsonl");
        wait_for("three steps", || lines(&metrics) >= 3);
        let ran = stop(&studio, child, name);
        assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        let done = lines(&metrics);
        assert!(done < 60, "the run must be stopped before its end");
        let told = format!("stopped after step {done} of 60; everything is saved");
        assert!(ran.stderr.contains(&told), "{}", ran.stderr);
        let next = ran.stderr.lines().find_map(|line| line.strip_prefix("go on with: catelier ")).unwrap();

        let read = |run: &str, file: &str| fs::read_to_string(studio.path(run).join(file)).unwrap();
        assert!(
            read(&run, "README.md").contains(&format!("trained for {done} of 60 steps")),
            "{}",
            read(&run, "README.md")
        );
        assert_eq!(steps_in_header(&studio, &run), done as u64);
        assert!(read(&run, "run.toml").starts_with(&format!("# stopped after {done} of 60 steps")));

        studio.done(next);
        assert_eq!(lines(&metrics), 60);
        for file in ["adapter.safetensors", "README.md", "run.toml"] {
            let [found, expected] = [run.as_str(), "whole"].map(|run| fs::read(studio.path(run).join(file)).unwrap());
            assert!(found == expected, "`{file}` differs after {name}");
        }
    }
}

#[test]
fn a_terminal_that_goes_away_hangs_up_several_times_and_the_run_is_saved() {
    let studio = studio();
    // A step of a second or a few.
    let line = format!("{SHORT} --accumulation 20 --out run").replace("--drift-every 2", "--drift-every 0");
    let child = start(&studio, &line.replace("--steps 4", "--steps 50"));
    wait_for("a step", || lines(&studio.path("run/metrics.jsonl")) >= 1);
    for _ in 0..3 {
        signal(&child, "-HUP");
    }
    let ran = Ran::from(child.wait_with_output().unwrap(), &studio.path(""));
    assert_eq!(ran.code, Some(129), "{}", ran.stderr);
    assert!(studio.path("run/adapter.safetensors").exists(), "{}", ran.stderr);
}

#[test]
fn a_stop_in_a_preview_does_not_wait_for_it_and_the_run_makes_up_for_it() {
    let studio = studio();
    let line = RUN.replace("--steps 60", "--steps 4 --resolution 128 --preview-every 2 --preview-prompt {trigger}");
    studio.done(&format!("{line} --out whole"));
    let child = start(&studio, &format!("{line} --out parts"));
    // A preview takes many times as long as a step.
    wait_for("the first preview", || lines(&studio.path("parts/metrics.jsonl")) >= 2);
    let ran = stop(&studio, child, "-INT");
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    assert!(!studio.path("parts/previews/step-000002.png").exists(), "the preview was waited for");
    studio.done("train --resume --out parts");
    for step in [2, 4] {
        let read = |run: &str| fs::read(studio.path(run).join(format!("previews/step-{step:06}.png"))).unwrap();
        assert!(read("whole") == read("parts"), "the preview of step {step}");
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let studio = studio();
    // One step takes minutes.
    let line = format!("{SHORT} --accumulation 5000 --out run").replace("--drift-every 2", "--drift-every 0");
    let child = start(&studio, &line);
    wait_for("the run", || studio.path("run/run.toml").exists());
    let ran = {
        signal(&child, "-INT");
        std::thread::sleep(std::time::Duration::from_millis(300));
        stop(&studio, child, "-TERM")
    };
    assert_eq!(ran.code, Some(143), "{}", ran.stderr);
    assert!(ran.stderr.contains("once more ends at once"), "{}", ran.stderr);
    assert!(!studio.path("run/adapter.safetensors").exists());
}

#[test]
fn a_run_that_was_started_to_outlive_its_terminal_does() {
    let studio = studio();
    let line = RUN.replace("--steps 60", "--steps 5000");
    let script = format!("trap '' HUP; exec \"$0\" {line} --out run");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_catelier")]).current_dir(studio.path(".")).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let metrics = studio.path("run/metrics.jsonl");
    wait_for("a step", || lines(&metrics) >= 1);
    signal(&child, "-HUP");
    let before = lines(&metrics);
    wait_for("more steps", || lines(&metrics) >= before + 3);
    assert_eq!(stop(&studio, child, "-INT").code, Some(130));
}

#[test]
fn a_stopped_demo_writes_no_page_and_its_card_claims_nothing() {
    let studio = Studio::new();
    let child = start(&studio, "demo --artist goldleaf --prompts 1 --sampling-steps 3 --out shown");
    wait_for("a step", || lines(&studio.path("shown/goldleaf/cat/metrics.jsonl")) >= 1);
    let ran = stop(&studio, child, "-TERM");
    assert_eq!(ran.code, Some(143), "{}", ran.stderr);
    assert!(ran.stderr.contains("no new report; the same command begins anew"), "{}", ran.stderr);
    assert!(!studio.path("shown/report.html").exists() && !studio.path("shown/goldleaf/lora").exists());
    let card = fs::read_to_string(studio.path("shown/goldleaf/cat/README.md")).unwrap();
    assert!(card.contains(" of 200 steps"), "{card}");
    studio.done("demo --artist goldleaf --steps 1 --prompts 1 --sampling-steps 3 --out shown");
}

#[test]
fn a_simulation_that_is_stopped_in_its_first_round_averages_nothing() {
    let studio = Studio::new();
    let line = "federate simulate --artists goldleaf,poster --rounds 1 --local-steps 200 --images 2 --prompts 1 --sampling-steps 3";
    let child = start(&studio, &format!("{line} --out parts"));
    wait_for("a step", || lines(&studio.path("parts/goldleaf/round-1/metrics.jsonl")) >= 1);
    let ran = stop(&studio, child, "-TERM");
    assert_eq!(ran.code, Some(143), "{}", ran.stderr);
    assert!(ran.stderr.contains("go on with: catelier federate simulate --resume --out parts"), "{}", ran.stderr);
    for file in ["global.safetensors", "simulation.json", "poster/round-1"] {
        assert!(!studio.path("parts").join(file).exists(), "{file}");
    }
}

#[cfg(target_os = "linux")]
mod with_status_files {
    use super::*;
    use crate::crash::catches_interrupts;

    #[test]
    fn a_stopped_preview_keeps_the_images_that_are_done() {
        let studio = Studio::new();
        let child = start(&studio, "preview --prompt house --steps 2 --count 400 --out out");
        wait_for("an image", || studio.path("out/000-seed42.png").exists());
        let ran = stop(&studio, child, "-INT");
        assert_eq!(ran.code, Some(130), "{}", ran.stderr);
        let files: Vec<_> = fs::read_dir(studio.path("out")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let images = files.iter().filter(|file| file.extension().is_some_and(|end| end == "png"));
        let done = images.inspect(|file| drop(image::open(file).unwrap())).count();
        let told = format!("{done} of 400 images are in `out`");
        assert!(done < 400 && ran.stderr.contains(&told), "{done} images:\n{}", ran.stderr);
    }

    #[test]
    fn generation_stops_between_sampler_steps() {
        let studio = studio();
        studio.done(&format!("{EMBEDDED} --out run"));
        for line in [
            "preview --prompt house --steps 900 --count 100 --out out",
            "evaluate --adapter run/adapter.safetensors --steps 900 --out out",
        ] {
            let child = start(&studio, line);
            wait_for("the first sampler step", || catches_interrupts(&child));
            let ran = stop(&studio, child, "-TERM");
            assert_eq!(ran.code, Some(143), "{}", ran.stderr);
            assert!(ran.stderr.contains("stopping after this step; once more ends at once\n"), "{}", ran.stderr);
            assert!(ran.stderr.contains("begins anew") && ran.stderr.ends_with("stopped\n"), "{}", ran.stderr);
            assert_eq!(ran.stdout, "");
            for file in ["scores.json", "report.html", "base", "000-seed42.png"] {
                assert!(!studio.path("out").join(file).exists(), "`{line}` left `{file}`");
            }
        }
    }
}

#[test]
fn a_stopped_drawing_has_whole_pairs_and_says_how_many() {
    let studio = Studio::new();
    let child = start(&studio, "gallery draw --artist poster --count 200000 --out art");
    wait_for("images", || studio.path("art/0070.txt").exists());
    let ran = stop(&studio, child, "-INT");
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    let done = fs::read_dir(studio.path("art"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "png"));
    let told = format!("{} of 200000 images are in `art`", done.count());
    assert!(ran.stderr.contains(&told), "{}", ran.stderr);
}
