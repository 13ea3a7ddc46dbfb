//! Signals and crashes: finished work is never lost.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use catelier_numerics::tensor_file::TensorFile;

use crate::catelier::{Ran, Studio};
use crate::train::{SHORT, endless, studio, tensors};

pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

pub(crate) fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let started = Instant::now();
    while !reached() {
        assert!(started.elapsed() < Duration::from_secs(90), "waited too long for {what}");
        sleep(Duration::from_millis(10));
    }
}

pub(crate) fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn a_run_killed_while_it_saves_goes_on_from_the_last_whole_state() {
    let studio = studio();
    let mut child = studio.command(&format!("{} --out run", endless(1))).stderr(Stdio::null()).spawn().unwrap();
    wait_for("a few states", || lines(&studio.path("run/metrics.jsonl")) >= 6);
    child.kill().unwrap();
    child.wait().unwrap();
    let ran = studio.done("train --resume --steps 9 --out run");
    assert!(ran.stderr.contains("resumed after step"), "{}", ran.stderr);

    let flags = SHORT.replace("--steps 4", "--steps 9").replace("--drift-every 2", "--drift-every 0");
    studio.done(&format!("{flags} --out whole").replace("--save-every 2", "--save-every 1"));
    assert!(tensors(&studio, "run") == tensors(&studio, "whole"), "killed and resumed differs from never stopped");
}

#[test]
fn a_damaged_newest_state_gives_way_to_the_one_before() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    studio.write("run/state/step-000004.safetensors", b"half a file");
    let ran = studio.done("train --resume --steps 5 --out run");
    assert!(ran.stderr.contains("resumed after step 2"), "{}", ran.stderr);
}

/// Whether the process has a handler for SIGINT (`man 5 proc_pid_status`).
#[cfg(target_os = "linux")]
pub(crate) fn catches_interrupts(child: &Child) -> bool {
    const INTERRUPT: u64 = 1 << (2 - 1);
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & INTERRUPT != 0)
}

/// A run in which no file may grow beyond `kibibytes`, which is the same to the command as a full disk.
pub(crate) fn on_a_full_disk(studio: &Studio, kibibytes: usize, line: &str) -> Ran {
    // The command inherits the ignored signal, so a write beyond the limit fails as on a full disk.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" {line}", 2 * kibibytes);
    let output = Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_catelier")])
        .current_dir(studio.path("."))
        .output()
        .unwrap();
    Ran::from(output, &studio.path(""))
}

#[test]
fn a_full_disk_while_saving_is_told_and_loses_nothing() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let kept = fs::read(studio.path("run/adapter.safetensors")).unwrap();

    let ran = on_a_full_disk(&studio, 16, "train --resume --steps 9 --out run");
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.message().contains("run/state/step-000006.safetensors"), "{}", ran.stderr);
    assert!(ran.message().contains("File too large"), "{}", ran.stderr);
    assert_eq!(fs::read(studio.path("run/adapter.safetensors")).unwrap(), kept, "the old adapter is untouched");
    let partial = fs::read_dir(studio.path("run/state")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(partial.into_iter().all(|name| name.to_string_lossy().ends_with(".safetensors")), "no half file is left");

    let ran = studio.done("train --resume --steps 9 --out run");
    assert!(ran.stderr.contains("resumed after step 4"), "{}", ran.stderr);
}

#[test]
fn a_run_that_diverges_stops_names_the_image_and_keeps_the_last_good_state() {
    let studio = studio();
    let ran =
        studio.run(&format!("{SHORT} --learning-rate 1e30 --out run").replace("--save-every 2", "--save-every 1"));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let message = ran.message();
    assert!(message.contains("loss is not finite at step"), "{message}");
    assert!(message.contains(".png`") && message.contains("timestep"), "{message}");
    assert!(message.contains("hint: "), "{message}");

    let states: Vec<_> = fs::read_dir(studio.path("run/state")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!states.is_empty(), "the last good state is kept");
    for path in states {
        let file = TensorFile::open(&path).unwrap();
        for name in file.names() {
            let sum = file.tensor(name, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap().sum_all().unwrap();
            assert!(sum.to_scalar::<f64>().unwrap().is_finite(), "`{name}` of `{}`", path.display());
        }
    }
}
