//! Output folders from the outside: whose they are, who writes there, and what a crash leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
#[cfg(unix)]
use std::process::Stdio;

use crate::catelier::{Ran, Studio};
#[cfg(unix)]
use crate::crash::wait_for;
#[cfg(unix)]
use crate::train::endless;
use crate::train::{EMBEDDED, SHORT, studio};

fn refused(ran: &Ran, told: &[&str]) {
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    for part in told {
        assert!(ran.message().contains(part), "`{part}` is not told:\n{}", ran.message());
    }
    assert!(ran.message().contains("hint: "), "{}", ran.message());
}

/// The steps in the metrics of `run`.
fn steps(studio: &Studio, run: &str) -> Vec<u64> {
    let text = fs::read_to_string(studio.path(run).join("metrics.jsonl")).unwrap_or_default();
    let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap();
    text.lines().map(step).collect()
}

/// Every file below `folder` with its bytes, but for the marker.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else if name != ".catelier.json" {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    found
}

#[cfg(unix)]
#[test]
fn a_second_process_is_refused_told_by_whom_and_let_in_after_a_crash() {
    let studio = studio();
    let mut first = studio.command(&format!("{} --out run", endless(1))).stderr(Stdio::null()).spawn().unwrap();
    let who = format!("`run` is in use: process {} (`catelier train`)", first.id());
    // Before the first state too, while the base is loaded.
    wait_for("the marker", || studio.path("run/.catelier.json").exists());
    refused(&studio.run(&format!("{SHORT} --seed 9 --out run")), &[&who]);
    wait_for("a few states", || steps_so_far(&studio) >= 3);
    refused(&studio.run("train --resume --out run"), &[&who]);
    refused(&studio.run("preview --prompt house --force --out run"), &[&who]);
    first.kill().unwrap();
    first.wait().unwrap();

    let made = steps_so_far(&studio);
    let ran = studio.done(&format!("train --resume --steps {} --out run", made + 2));
    assert!(ran.stderr.contains("resumed after step"), "{}", ran.stderr);
    assert_eq!(steps(&studio, "run"), (1..=made as u64 + 2).collect::<Vec<_>>());
    let expected =
        SHORT.replace("--steps 4", &format!("--steps {}", made + 2)).replace("--drift-every 2", "--drift-every 0");
    studio.done(&format!("{expected} --out whole"));
    assert!(crate::train::tensors(&studio, "run") == crate::train::tensors(&studio, "whole"));
}

#[cfg(unix)]
fn steps_so_far(studio: &Studio) -> usize {
    fs::read_to_string(studio.path("run/metrics.jsonl")).map_or(0, |text| text.matches('\n').count())
}

#[cfg(unix)]
#[test]
fn of_two_resumes_one_is_refused() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let line = "train --resume --steps 60 --out run";
    let mut first = studio.command(line).stderr(Stdio::null()).spawn().unwrap();
    wait_for("a step", || steps_so_far(&studio) >= 5);
    refused(&studio.run(line), &["is in use: process", "`catelier train`"]);
    assert!(first.wait().unwrap().success());
    assert_eq!(steps(&studio, "run"), (1..=60).collect::<Vec<_>>());
}

#[cfg(unix)]
#[test]
fn a_run_begun_anew_after_a_kill_before_its_first_save_has_its_own_metrics_alone() {
    let studio = studio();
    for seed in [1, 2] {
        let line = format!("{} --seed {seed} --out run", endless(1000));
        let mut child = studio.command(&line).stderr(Stdio::null()).spawn().unwrap();
        wait_for("three steps", || steps_so_far(&studio) >= 3);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    studio.write("run/state/.step-000004.safetensors.12345-0.partial", "half");
    studio.write("run/.adapter.safetensors.12345-1.partial", "half");
    studio.done(&format!("{SHORT} --seed 3 --out run"));
    assert_eq!(steps(&studio, "run"), [1, 2, 3, 4]);
    let leftovers = files(&studio.path("run")).into_keys().filter(|name| name.contains(".partial")).count();
    assert_eq!(leftovers, 0);
    let metrics = fs::read_to_string(studio.path("run/metrics.jsonl")).unwrap();
    let runs: Vec<_> = metrics.lines().map(|line| line[..line.find(',').unwrap()].to_owned()).collect();
    assert!(runs[0].contains("\"run\":\"") && runs.iter().all(|run| *run == runs[0]), "{metrics}");
}

#[test]
fn every_command_refuses_a_folder_with_files_of_others_and_keeps_them() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let adapter = "--adapter run/adapter.safetensors";
    for line in [
        format!("{SHORT} --out mine"),
        "preview --prompt house --steps 1 --out mine".into(),
        format!("evaluate {adapter} --prompts art/0001.txt --seeds 1 --steps 1 --out mine"),
        "demo --steps 1 --prompts 1 --out mine".into(),
        "federate simulate --artists goldleaf --rounds 1 --local-steps 1 --out mine".into(),
        "gallery draw --artist neon --count 2 --out mine".into(),
        "gallery draw --format npy --count 2 --out mine".into(),
        "adapter convert run/adapter.safetensors --format peft --out mine".into(),
    ] {
        let own = ["README.md", "run.toml", "metrics.jsonl", "notes/monday.txt"].map(|name| format!("mine/{name}"));
        own.iter().for_each(|file| drop(studio.write(file, b"precious")));
        let before = files(&studio.path("mine"));
        refused(&studio.run(&line), &["`mine/README.md` is in the way", "--force"]);
        assert!(!studio.path("mine/.catelier.json").exists(), "{line}");
        assert_eq!(files(&studio.path("mine")), before, "{line}");
    }
}

#[test]
fn force_writes_beside_files_of_others_and_replaces_none() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    for (own, line) in [
        ("run.toml", format!("{SHORT} --force --out mine")),
        ("wash/cat/state/diary.txt", "demo --steps 1 --prompts 1 --force --out mine".into()),
        ("goldleaf/images/sunset.png", "federate simulate --artists goldleaf --force --out mine".into()),
        ("scores.json", "evaluate --adapter run/adapter.safetensors --seeds 1 --steps 1 --force --out mine".into()),
        ("0001.txt", "gallery draw --artist neon --count 2 --force --out mine".into()),
        ("metadata.jsonl", "gallery draw --format npy --count 2 --force --out mine".into()),
        ("adapter_config.json", "adapter convert run/adapter.safetensors --format peft --force --out mine".into()),
    ] {
        studio.write(&format!("mine/{own}"), b"precious");
        refused(&studio.run(&line), &["is in the way", "`mine/"]);
        assert_eq!(files(&studio.path("mine")).into_keys().collect::<Vec<_>>(), [own], "{line}");
        fs::remove_dir_all(studio.path("mine")).unwrap();
    }
    studio.write("mine/notes.txt", b"precious");
    studio.write("mine/000-sunset.png", b"precious");
    studio.done("preview --prompt house --steps 1 --force --out mine");
    studio.done("gallery draw --artist neon --count 1 --force --out mine");
    let kept = files(&studio.path("mine"));
    assert_eq!(
        kept.keys().collect::<Vec<_>>(),
        ["000-sunset.png", "0001.png", "0001.txt", "001-seed42.png", "notes.txt"]
    );
    assert_eq!(kept["000-sunset.png"], b"precious");
}

#[test]
fn previews_and_sheets_are_numbered_on_and_none_is_replaced() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let sheets = "--compare --adapter run/adapter.safetensors";
    let mut before = BTreeMap::new();
    for (line, new) in [
        ("--prompt house --prompt boat", vec!["000-seed42.png", "001-seed42.png"]),
        ("--prompt teapot", vec!["002-seed42.png"]),
        (&format!("--prompt house {sheets}"), vec!["compare-000.png"]),
        (&format!("--prompt cat {sheets}"), vec!["compare-001.png"]),
        ("--prompt house --count 2 --seed 7", vec!["003-seed7.png", "003-seed8.png"]),
    ] {
        let ran = studio.done(&format!("preview --base base --steps 1 {line} --out seen"));
        let printed: Vec<_> = new.iter().map(|name| format!("seen/{name}")).collect();
        assert_eq!(ran.stdout.lines().collect::<Vec<_>>(), printed);
        let after = files(&studio.path("seen"));
        assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "{line}");
        assert!(after.len() == before.len() + new.len(), "{line}: {:?}", after.keys());
        before = after;
    }
}

#[test]
fn a_file_that_exists_is_replaced_by_force_alone() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let adapter = "run/adapter.safetensors";
    let convert = format!("adapter convert {adapter} --base base --format diffusers --out mine.safetensors");
    let aggregate =
        format!("federate aggregate --base base --adapter {adapter} --adapter ./{adapter} --out mine.safetensors");
    for line in [convert, aggregate] {
        studio.write("mine.safetensors", b"precious");
        refused(&studio.run(&line), &["`mine.safetensors` exists already", "--force"]);
        assert_eq!(fs::read(studio.path("mine.safetensors")).unwrap(), b"precious");
        studio.done(&format!("{line} --force"));
        assert_ne!(fs::read(studio.path("mine.safetensors")).unwrap(), b"precious");
    }
}

#[test]
fn a_run_from_before_there_were_markers_goes_on() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    fs::remove_file(studio.path("run/.catelier.json")).unwrap();
    studio.done("train --resume --steps 6 --out run");
    assert_eq!(steps(&studio, "run"), [1, 2, 3, 4, 5, 6]);
    assert!(studio.path("run/.catelier.json").exists());
}

#[test]
fn settings_that_were_changed_on_disk_are_refused_by_name() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let saved = fs::read_to_string(studio.path("run/run.toml")).unwrap();
    let changed = saved.replace("steps = 4\n", "steps = 6\n");
    studio.write("run/run.toml", &changed);
    refused(&studio.run("train --resume --out run"), &["run/run.toml` is not as it was saved"]);
    let meant = changed.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n"));
    studio.write("run/run.toml", meant.collect::<String>());
    studio.done("train --resume --out run");
    assert_eq!(steps(&studio, "run").len(), 6);
}

#[test]
fn a_damaged_state_gives_way_to_the_older_one_and_is_named() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out whole").replace("--steps 4", "--steps 6"));
    studio.done(&format!("{SHORT} --out run"));
    fs::remove_file(studio.path("run/adapter.safetensors")).unwrap();
    let newest = studio.path("run/state/step-000004.safetensors");
    let whole = fs::read(&newest).unwrap();
    for (damage, reason) in [
        (flipped(&whole, whole.len() - 5), "it is damaged: its checksum does not hold"),
        (whole[..5000].to_vec(), "the file is cut short"),
    ] {
        fs::write(&newest, damage).unwrap();
        let ran = studio.done("train --resume --steps 6 --out run");
        let told = "warning: left out the newer state `run/state/step-000004.safetensors`: ";
        assert!(ran.stderr.contains(told) && ran.stderr.contains(reason), "{}", ran.stderr);
        assert!(ran.stderr.contains("resumed after step 2"), "{}", ran.stderr);
        assert!(crate::train::tensors(&studio, "run") == crate::train::tensors(&studio, "whole"));
        assert_eq!(steps(&studio, "run"), [1, 2, 3, 4, 5, 6]);
        fs::remove_dir_all(studio.path("run")).unwrap();
        studio.done(&format!("{SHORT} --out run"));
    }
    for step in [2, 4] {
        let path = studio.path(&format!("run/state/step-00000{step}.safetensors"));
        let damaged = flipped(&fs::read(&path).unwrap(), 3000);
        fs::write(path, damaged).unwrap();
    }
    fs::remove_file(studio.path("run/adapter.safetensors")).unwrap();
    let ran = studio.run("train --resume --steps 6 --out run");
    refused(
        &ran,
        &["run/state/step-000004.safetensors`: it is damaged", "run/state/step-000002.safetensors`: it is damaged"],
    );
    assert!(!ran.message().contains("adapter"), "there is none: {}", ran.message());
}

fn flipped(bytes: &[u8], place: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[place] ^= 1;
    bytes
}

#[cfg(unix)]
#[test]
fn a_killed_drawing_is_no_whole_one_and_is_drawn_anew() {
    let studio = Studio::new();
    let line = |count: usize| format!("gallery draw --artist goldleaf --count {count} --seed 3 --out");
    studio.done(&format!("{} whole", line(6)));
    let mut child = studio.command(&format!("{} art", line(9999))).stderr(Stdio::null()).spawn().unwrap();
    wait_for("some images", || studio.path("art").exists() && fs::read_dir(studio.path("art")).unwrap().count() > 20);
    child.kill().unwrap();
    child.wait().unwrap();
    let part = studio.run(&format!("{EMBEDDED} --out run"));
    refused(&part, &["`art` holds a part of its images", "draw them again"]);
    studio.done(&format!("{} art", line(6)));
    assert_eq!(files(&studio.path("art")), files(&studio.path("whole")));
    refused(&studio.run(&format!("{} art", line(6))), &["`art` holds drawn images already"]);
    studio.done(&format!("{} art --force", line(5)));
    assert_eq!(files(&studio.path("art")).len(), 10);
}

#[test]
fn a_request_that_fails_early_leaves_no_folder() {
    let studio = Studio::new();
    studio.write("art/broken.png", b"no image");
    studio.write("art/broken.txt", b"shs, a house");
    for line in [
        "train --images art --trigger shs --steps 1 --out out",
        "preview --prompt house --adapter nowhere.safetensors --out out",
        "preview --prompt house --base nowhere --out out/images",
        "evaluate --adapter nowhere.safetensors --out out",
    ] {
        assert_eq!(studio.run(line).code, Some(2), "{line}");
        let left = fs::read_dir(studio.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(left.eq(["art"]), "{line}");
    }
}

#[test]
fn a_damaged_adapter_of_ours_is_refused_and_a_changed_one_of_others_is_told() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let whole = fs::read(studio.path("run/adapter.safetensors")).unwrap();
    studio.write("damaged.safetensors", flipped(&whole, whole.len() - 4));
    let ran = studio.run("preview --base base --prompt house --steps 1 --adapter damaged.safetensors --out seen");
    refused(&ran, &["`damaged.safetensors` is damaged: its checksum does not hold"]);
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let header = [("sshs_model_hash".to_owned(), "0".repeat(64))].into();
    studio.write("other.safetensors", safetensors::serialize(tensors.tensors(), Some(header)).unwrap());
    let ran = studio.done("preview --base base --prompt house --steps 1 --adapter other.safetensors --out seen");
    assert!(ran.stderr.contains("warning: `other.safetensors`: its tensors are not those"), "{}", ran.stderr);
}
