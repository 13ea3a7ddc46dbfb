//! Streams, folders and names that cannot take what is written: nothing is lost by them, and no text of a file speaks to
//! the terminal.
#![cfg(unix)]

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use crate::catelier::{Ran, Studio};
use crate::crash::{lines, on_a_full_disk, signal, wait_for};
use crate::train::{EMBEDDED, SHORT, studio};

/// A stream whose reader went away.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A stream that takes nothing more, as a file on a full disk.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn finish(command: &mut Command, studio: &Studio) -> Ran {
    let child = command.spawn().unwrap();
    Ran::from(child.wait_with_output().unwrap(), &studio.path(""))
}

#[test]
fn a_closed_or_full_stderr_ends_no_work() {
    let studio = studio();
    for (out, stderr) in [("closed", closed()), ("full", full())] {
        let ran = finish(studio.command(&format!("{SHORT} --preview-every 4 --out {out}")).stderr(stderr), &studio);
        assert_eq!(ran.code, Some(0), "stderr is {out}");
        assert_eq!(lines(&studio.path(out).join("metrics.jsonl")), 4);
        assert!(studio.path(out).join("adapter.safetensors").exists());
    }
    for (line, code) in [("adapter inspect nowhere", 2), ("train --no-such-flag", 2)] {
        for stderr in [closed(), full()] {
            assert_eq!(finish(studio.command(line).stderr(stderr), &studio).code, Some(code), "{line}");
        }
    }
}

#[test]
fn a_reader_that_stops_reading_ends_no_work() {
    let studio = studio();
    studio.done(&format!("{EMBEDDED} --out run"));
    let mut preview = studio.command("preview --prompt house --steps 1 --count 3 --out images");
    let ran = finish(preview.stdout(closed()).stderr(Stdio::piped()), &studio);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for seed in 42..45 {
        assert!(studio.path("images").join(format!("000-seed{seed}.png")).exists(), "{seed}");
    }
    studio.write("prompts.txt", "a house\na boat\n");
    let evaluate = "evaluate --adapter run/adapter.safetensors --prompts prompts.txt --seeds 1 --steps 1 --out scores";
    for (least, code) in [("2", 1), ("-1", 0)] {
        for json in ["", " --json"] {
            let line = format!("{evaluate} --require kps_no_token={least}{json}");
            let ran = finish(studio.command(&line).stdout(closed()).stderr(Stdio::piped()), &studio);
            assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        }
    }
    for line in ["gallery list", "base inspect", "adapter inspect run/adapter.safetensors", "--help", "--version"] {
        let ran = finish(studio.command(line).stdout(closed()).stderr(Stdio::piped()), &studio);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{line}");
    }
}

#[test]
fn a_full_stdout_is_a_failure_with_its_reason() {
    let studio = Studio::new();
    for line in ["gallery list", "base inspect --json", "train --help", "--version"] {
        let ran = finish(studio.command(line).stdout(full()).stderr(Stdio::piped()), &studio);
        assert_eq!(ran.code, Some(1), "{line}");
        assert!(ran.message().starts_with("error: cannot write to stdout\ncause: No space left"), "{}", ran.stderr);
    }
}

fn is_plain(text: &str) -> bool {
    !text.chars().any(|c| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)))
}

#[test]
fn no_text_of_a_file_speaks_to_the_terminal() {
    const EVIL: &str = "\x1b[2J\x1b]0;owned\x07\u{9b}31m\r\u{202e}x\nerror: fine";
    const SHOWN: &str = "\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\u{9b}31m\\r\\u{202e}x\\nerror: fine";
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let bytes = fs::read(studio.path("run/adapter.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let header = || Some([(EVIL.to_string(), EVIL.to_string())].into());
    studio.write("evil.safetensors", safetensors::serialize(tensors.tensors(), header()).unwrap());
    let ran = studio.done("adapter inspect evil.safetensors");
    assert!(ran.stdout.contains(&format!("\n  {SHOWN}: {SHOWN}")) && is_plain(&ran.stdout), "{:?}", ran.stdout);
    let json: serde_json::Value =
        serde_json::from_str(&studio.done("adapter inspect evil.safetensors --json").stdout).unwrap();
    assert_eq!(json["metadata"][EVIL], EVIL, "programs get what is there");

    let renamed = tensors.tensors().into_iter().map(|(name, tensor)| (format!("{EVIL}{name}"), tensor));
    studio.write("names.safetensors", safetensors::serialize(renamed, None).unwrap());
    let name = format!("{EVIL}.safetensors");
    studio.write("plain", "no adapter");
    fs::rename(studio.path("plain"), studio.path(&name)).unwrap();
    for adapter in ["names.safetensors", &name] {
        let mut command = studio.command("preview --prompt house --steps 1 --out out --adapter");
        let ran = finish(command.arg(adapter).stdout(Stdio::piped()).stderr(Stdio::piped()), &studio);
        assert!(ran.code == Some(2) && ran.stderr.contains(SHOWN) && is_plain(&ran.stderr), "{:?}", ran.stderr);
    }
    let ran = finish(studio.command("gallery").arg(EVIL).stderr(Stdio::piped()), &studio);
    assert!(ran.code == Some(2) && ran.stderr.contains("\\u{9b}31m") && is_plain(&ran.stderr), "{:?}", ran.stderr);

    fs::write(studio.path("art/0001.txt"), format!("a house {EVIL}")).unwrap();
    let mut command = studio.command("train --images art --steps 1 --drift-every 0 --out other --trigger");
    let ran = finish(command.arg("\u{202e}shs").stderr(Stdio::piped()), &studio);
    assert!(is_plain(&ran.stderr), "{:?}", ran.stderr);
}

#[test]
fn a_disk_that_fails_is_no_mistake_of_the_user_and_leaves_no_half_adapter() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    for line in [
        "adapter convert run/adapter.safetensors --base base --format peft --out peft",
        "adapter convert run/adapter.safetensors --base base --format diffusers --out other.safetensors",
    ] {
        let ran = on_a_full_disk(&studio, 8, line);
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        assert!(ran.message().contains("File too large"), "{}", ran.stderr);
    }
    assert!(!studio.path("peft/adapter_config.json").exists() && !studio.path("other.safetensors").exists());
    // Less than the first megabyte of an array.
    let ran = on_a_full_disk(&studio, 16, "gallery draw --format npy --count 64 --out many");
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
}

#[test]
fn an_output_that_cannot_be_written_is_found_before_the_work() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    studio.write("file", "no folder");
    let adapter = "run/adapter.safetensors";
    for line in [
        format!("{SHORT} --out file/run"),
        format!("preview --prompt house --adapter {adapter} --out file/images"),
        format!("evaluate --adapter {adapter} --out file/scores"),
        format!("adapter convert {adapter} --format peft --out file/peft"),
        format!("adapter convert {adapter} --format kohya --out nowhere/kohya.safetensors"),
        format!("adapter convert {adapter} --format kohya --out art"),
        format!("federate aggregate --adapter {adapter} --adapter {adapter} --out file/mean.safetensors"),
        "federate simulate --rounds 1 --out file/simulation".to_string(),
        "demo --out file/demo".to_string(),
        "gallery draw --out file/art".to_string(),
    ] {
        let ran = studio.run(&line);
        assert_eq!(ran.code, Some(2), "`{line}`:\n{}", ran.stderr);
        let told = ran.stderr.lines().next().unwrap();
        assert!(told.starts_with("error: "), "`{line}` worked before it tried:\n{}", ran.stderr);
    }
    assert_eq!(fs::read_to_string(studio.path("file")).unwrap(), "no folder");
}

#[test]
fn names_that_are_no_text_work_or_are_refused_before_the_work() {
    let studio = studio();
    let bad = |name: &[u8]| OsStr::from_bytes(name).to_owned();
    let (art, out) = (bad(b"bad\xff art"), bad(b"bad\xff out"));
    fs::rename(studio.path("art"), studio.path(".").join(&art)).unwrap();
    let run = |line: &str, path: &OsStr| {
        finish(studio.command(line).arg(path).stdout(Stdio::piped()).stderr(Stdio::piped()), &studio)
    };
    for (line, path) in [
        ("train --trigger shs --out run --images", &art),
        ("demo --out", &out),
        ("federate simulate --out", &out),
        ("preview --prompt house --steps 1 --json --out", &out),
    ] {
        let ran = run(line, path);
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        let told = "` is not UTF-8, and ";
        assert!(ran.stderr.starts_with("error: `bad") && ran.stderr.contains(told), "`{line}`:\n{}", ran.stderr);
    }
    assert_eq!(run("preview --prompt house --steps 1 --out", &out).code, Some(0));

    fs::rename(studio.path(".").join(&art), studio.path("art")).unwrap();
    let line = "train --images art --trigger shs --batch 1 --rank 2 --steps 5000 --drift-every 0 --out";
    let run = bad(b"bad\xff 'run'");
    let child = studio.command(line).arg(&run).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("a step", || lines(&studio.path(".").join(&run).join("metrics.jsonl")) >= 1);
    signal(&child, "-INT");
    let told = Ran::from(child.wait_with_output().unwrap(), &studio.path("")).stderr;
    let done = lines(&studio.path(".").join(&run).join("metrics.jsonl"));
    let next = told.lines().find_map(|line| line.strip_prefix("go on with: catelier ")).unwrap();
    assert!(next.ends_with(r"--out $'bad\xff \'run\''"), "{next}");
    let script = format!("exec \"$0\" {next} --steps {}", done + 1);
    let mut bash = Command::new("bash");
    bash.args(["-c", &script, env!("CARGO_BIN_EXE_catelier")]).current_dir(studio.path("."));
    assert!(bash.output().unwrap().status.success(), "{script}");
}

#[test]
fn a_drawing_with_all_defaults_is_a_training_folder() {
    let studio = Studio::new();
    studio.done("gallery draw --out art");
    assert!(File::open(studio.path("art/0010.png")).is_ok() && File::open(studio.path("art/0010.txt")).is_ok());
}

#[test]
fn a_state_of_another_run_is_refused_with_what_differs() {
    let studio = studio();
    studio.done(&format!("{SHORT} --out run"));
    let settings = fs::read_to_string(studio.path("run/run.toml")).unwrap();
    // Without the checksum in its last line, a changed file is meant.
    let unsealed = settings.trim_end().rsplit_once('\n').unwrap().0;
    studio.write("run/run.toml", unsealed.replace("dropout = 0.0", "dropout = 0.5"));
    let ran = studio.run("train --resume --steps 5 --out run");
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    let told = "it belongs to another run: its `dropout` is 0.0, and this run has 0.5";
    assert!(ran.message().contains(told), "{}", ran.message());
    studio.write("run/run.toml", settings);
    fs::remove_file(studio.path("art/0004.png")).unwrap();
    let ran = studio.run("train --resume --steps 5 --out run");
    assert!(ran.message().contains("it was saved with another dataset"), "{}", ran.message());
}
