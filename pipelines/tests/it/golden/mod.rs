//! Compares with outputs of diffusers, transformers and PEFT, on tiny models with random weights.
//!
//! `cargo test golden -- --nocapture` prints the used share of each tolerance.

mod adapted;
mod adapter_files;
mod bf16;
mod cat_training;
mod dora;
mod generation;
mod lora;
mod losses;
mod samplers;
mod schedule;
mod text;
mod unet;
mod vae;

use candle_core::{DType, Device, Tensor};
use catelier_pipelines::diffusion::{NoiseSchedule, SchedulerConfig};
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{AddedCondition, Condition, UNet};
use catelier_testkit::close::{assert_close, largest_difference};
use catelier_testkit::golden::{Fixture, Golden};
use catelier_testkit::tolerance::{self, Tolerance};

/// The models, and their names in the fixtures.
const MODELS: [(&str, &str); 3] = [("tiny-sd1", "sd1"), ("tiny-sd2", "sd2"), ("tiny-sdxl", "sdxl")];

/// The golden folder, with the kernels that this binary tests.
fn reference() -> Golden {
    crate::choose_kernels();
    Golden::open()
}

fn files(model: &str) -> ModelFiles {
    ModelFiles::folder(reference().model(model))
}

fn load_unet(model: &str) -> UNet {
    UNet::load(&files(model), DType::F32, &Device::Cpu).unwrap()
}

/// Asserts that a model's output equals the fixture's tensor `name` within ten times its noise.
#[track_caller]
fn assert_output(fixture: &Fixture, name: &str, actual: &Tensor) {
    check(name, actual, &fixture.tensor(name), tolerance::output(fixture.noise(name)));
}

/// Asserts that two tensors are close and prints the used share of the tolerance.
#[track_caller]
fn check(what: &str, actual: &Tensor, expected: &Tensor, tolerance: Tolerance) {
    assert_close(what, actual, expected, tolerance);
    show(what, largest_difference(actual, expected) / tolerance.allowed(largest_value(expected)));
}

#[expect(clippy::print_stdout, reason = "the figures of a parity run, shown with --nocapture")]
fn show(what: &str, share: f64) {
    println!("golden {what}: {:.1} % of the tolerance", 100.0 * share);
}

fn largest_value(tensor: &Tensor) -> f64 {
    largest_difference(tensor, &tensor.zeros_like().unwrap())
}

/// The condition stored as `<prefix>context` and, for SDXL, `<prefix>text_embeds` and `<prefix>time_ids`.
fn condition(fixture: &Fixture, prefix: &str) -> Condition {
    let added = fixture
        .try_tensor(&format!("{prefix}text_embeds"))
        .map(|pooled| AddedCondition { pooled, time_ids: fixture.tensor(&format!("{prefix}time_ids")) });
    Condition { context: fixture.tensor(&format!("{prefix}context")), added }
}

/// The noise schedule of a scheduler configuration.
fn schedule_of(config: &serde_json::Value) -> NoiseSchedule {
    let config: SchedulerConfig = serde_json::from_value(config.clone()).unwrap();
    NoiseSchedule::from_config(&config).unwrap()
}
