//! The benchmark from the outside: its report, and the input that it refuses.

use serde_json::Value;

use crate::catelier::Studio;

/// The quickest measurement.
const SHORT: &str = "--shape embedded --repeat 1 --warmup 0 --json";

fn measured(line: &str) -> Value {
    told(&format!("{line} {SHORT}"))
}

fn told(line: &str) -> Value {
    serde_json::from_str(&Studio::new().done(&format!("bench {line}")).stdout).unwrap()
}

/// Exit code 2, nothing on stdout, and everything in `expected` on stderr.
fn assert_refused(line: &str, expected: &[&str]) {
    let ran = Studio::new().run(&format!("bench {line}"));
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{}", ran.stderr);
    for text in expected {
        assert!(ran.stderr.contains(text), "`{line}` lacks `{text}`:\n{}", ran.stderr);
    }
}

#[test]
fn a_training_step_tells_time_memory_and_operations() {
    let report = measured("step --latent 8 --loss cat --threads 1");
    let expected = [("work", "step"), ("shape", "embedded"), ("loss", "cat"), ("dtype", "f32")];
    for (key, value) in expected {
        assert_eq!(report[key], value, "{key}");
    }
    for (key, value) in [("latent", 8), ("batch", 1), ("rank", 8), ("threads", 1), ("repeat", 1), ("warmup", 0)] {
        assert_eq!(report[key], value, "{key}");
    }
    let positive = ["/wall_seconds/median", "/wall_seconds/best", "/gflop", "/gflop_per_second"];
    let peaks = ["/matrix_product/f32/gflop_per_second", "/matrix_product/bf16/gflop_per_second"];
    for key in positive.into_iter().chain(peaks) {
        assert!(report.pointer(key).and_then(Value::as_f64).is_some_and(|value| value > 0.0), "{key} in {report}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn linux_tells_memory_and_cpu_time() {
    let report = measured("step --latent 8 --loss none");
    let bytes = |key: &str| report["memory_bytes"][key].as_u64().unwrap();
    // The embedded UNet alone has 24 MB of weights in f32.
    assert!(bytes("after_loading") > 24_000_000 && bytes("peak") > 24_000_000, "{report}");
    assert_eq!(bytes("over_loading"), bytes("peak").saturating_sub(bytes("after_loading")));
    let seconds = |key: &str| report["cpu_seconds"][key].as_f64().unwrap();
    assert!(seconds("best") > 0.0 && seconds("best") <= seconds("median"), "{report}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_step_takes_the_memory_that_was_planned() {
    // After the first steps, the allocator's memory has the same holes as after later ones.
    const WARM: &str = "--shape embedded --threads 1 --warmup 2 --repeat 1 --json";
    for line in ["step --loss lora --batch 16", "step --loss cat --batch 6 --dtype mixed"] {
        let memory = &told(&format!("{line} {WARM}"))["memory_bytes"];
        let [planned, peak] = ["planned", "peak"].map(|key| memory[key].as_f64().unwrap());
        assert!((planned / peak - 1.0).abs() < 0.15, "{line}: {memory}");
    }
}

#[test]
fn counted_operations_are_the_same_in_every_run_and_with_any_number_of_threads() {
    let gflop = |line: &str| measured(line)["gflop"].as_f64().unwrap();
    let cat = gflop("step --latent 8 --loss cat --threads 1");
    assert_eq!(cat, gflop("step --latent 8 --loss cat --threads 2"));
    let (lora, forward) = (gflop("step --latent 8 --loss lora"), gflop("step --latent 8 --loss none"));
    // CAT is two adapted passes with their gradients and one pass of the base, minus the shared work: the layers before
    // the first attention, and the base's keys and values of the caption.
    let sum = 2.0 * lora + forward;
    assert!(cat < sum && cat > 0.95 * sum, "{cat} against {sum}");
    assert!(lora > 2.0 * forward && lora < 4.0 * forward, "{lora} against {forward}");
}

#[test]
fn every_kind_of_work_runs_on_the_embedded_base() {
    for line in ["generate --latent 4 --steps 1", "vae --latent 4", "text"] {
        assert!(measured(line)["gflop"].as_f64().unwrap() > 0.0, "{line}");
    }
    let table = Studio::new().done("bench text --shape embedded --repeat 1").stdout;
    for row in ["work ", "time ", "CPU ", "counted ", "memory "] {
        assert!(table.lines().any(|line| line.starts_with(row)), "{table}");
    }
}

#[test]
fn two_steps_of_drawing_cost_one_more_step_than_one() {
    let gflop = |steps: usize| measured(&format!("generate --latent 4 --steps {steps}"))["gflop"].as_f64().unwrap();
    let (one, two, three) = (gflop(1), gflop(2), gflop(3));
    assert!(((three - two) / (two - one) - 1.0).abs() < 1e-9 && one > two - one, "{one} {two} {three}");
}

#[test]
fn sizes_out_of_range_name_the_setting() {
    let cause = |setting: &str, value: usize| format!("cause: setting `{setting}` is {value}, it must lie in 1..=1024");
    for (line, setting, value) in [
        ("step --latent 0", "latent", 0),
        ("vae --batch 0", "batch", 0),
        ("text --batch 5000", "batch", 5000),
        ("generate --steps 0", "steps", 0),
    ] {
        assert_refused(line, &["error: cannot set up the work", &cause(setting, value)]);
    }
    assert_refused("step --rank 0", &["cause: rank must be from 1 to 16384, found 0"]);
    assert_refused("step --repeat 0", &["error: `--repeat` is 0", "hint: measure at least once"]);
}

#[test]
fn unknown_names_are_answered_with_the_known_ones() {
    assert_refused("step --shape sd3", &["'sd3'", "sd15, sd21, sdxl, embedded"]);
    assert_refused("step --loss best", &["'best'", "lora, cat, none"]);
    assert_refused("step --dtype f8", &["'f8'", "f32"]);
    assert_refused("text --latent 8", &["--latent"]);
    assert_refused("", &["step", "generate", "vae", "text"]);
}

#[test]
fn a_device_that_is_not_there_is_refused_with_a_way_out() {
    assert_refused("text --shape embedded --device cuda:99", &["cannot use device `cuda:99`", "`--device cpu`"]);
}
