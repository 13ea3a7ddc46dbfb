//! Every target on its corpus and on mutations from a fixed seed: the same inputs in every run.
//!
//! `CATELIER_FUZZ_INPUTS` is a number of mutations, of all targets together; `CATELIER_FUZZ_SEED` another seed.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and tells what it tried")]

use catelier_hostile::{TARGETS, Target};
use catelier_testkit::thread_memory::ThreadAllocator;

#[global_allocator]
static ALLOCATOR: ThreadAllocator = ThreadAllocator;

const SEED: u64 = 20_261_128;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

/// The share of a target in the inputs of this run.
fn share(target: &Target) -> u64 {
    let all: u64 = TARGETS.iter().map(|target| target.inputs).sum();
    number("CATELIER_FUZZ_INPUTS").map_or(target.inputs, |inputs| (inputs * target.inputs).div_ceil(all))
}

fn holds(name: &str) {
    let target = Target::named(name);
    let report = target.run(share(target), number("CATELIER_FUZZ_SEED").unwrap_or(SEED));
    eprintln!("{name}: {} accepted, {} refused", report.accepted, report.refused);
    let failures: Vec<String> =
        report.failures.iter().map(|(input, message)| format!("{}: {message}", input.display())).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(report.accepted > 0 && report.refused > 0, "`{name}` tells nothing apart: {report:?}");
}

macro_rules! seeded {
    ($($name:ident)+) => {
        $(#[test] fn $name() { holds(stringify!($name)); })+

        #[test]
        fn every_target_is_tried() {
            assert_eq!(TARGETS.iter().map(|target| target.name).collect::<Vec<_>>(), [$(stringify!($name)),+]);
        }
    };
}

seeded! {
    adapter_file peft_config base base_weights clip_folder captions settings_file prompt_set prompt_text tokenizer
    train_state federation_state sent_contribution style_index style_entry round_place hub image_file
}
