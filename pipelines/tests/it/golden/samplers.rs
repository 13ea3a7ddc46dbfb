//! Every sampler configuration of the fixtures, with the model outputs and the noise of the reference.

use candle_core::Tensor;
use catelier_pipelines::diffusion::sampler::{SamplerKind, SamplerSettings, prepare};
use catelier_testkit::close::{assert_close, assert_numbers_close};
use catelier_testkit::golden::Fixture;
use catelier_testkit::tolerance::SCHEDULE;
use serde_json::Value;

use super::{reference, schedule_of};

/// The scheduler configuration of a fixture, with its class.
fn configuration(facts: &Value) -> Value {
    let mut config = facts["config"].clone();
    config["_class_name"] = facts["class"].clone();
    config
}

fn row(tensor: &Tensor, index: usize) -> Tensor {
    tensor.get(index).unwrap()
}

/// Runs one configuration and compares timesteps, sigmas, scaled inputs and samples, call by call.
fn follow(golden: &Fixture, name: &str, facts: &Value) {
    let schedule = schedule_of(&configuration(facts));
    let kind = SamplerKind::recommended(schedule.config()).unwrap_or_else(|| panic!("no sampler for {name}"));
    let steps = facts["steps"].as_u64().unwrap() as usize;
    let eta = facts["step_arguments"]["eta"].as_f64().unwrap_or(0.0);
    let mut sampler = prepare(&schedule, &SamplerSettings { eta, ..SamplerSettings::new(kind, steps) }).unwrap();

    let expected = golden.values(&format!("{name}.timesteps"));
    assert_numbers_close(&format!("{name} timesteps"), sampler.timesteps(), &expected, SCHEDULE);
    if let (Some(sigmas), Some(_)) = (sampler.sigmas(), golden.try_tensor(&format!("{name}.sigmas"))) {
        let expected = golden.values(&format!("{name}.sigmas"));
        assert_numbers_close(&format!("{name} sigmas"), sigmas, &expected, SCHEDULE);
    }
    let scale = facts["init_noise_sigma"].as_f64().unwrap();
    assert_numbers_close(&format!("{name} scale"), &[sampler.initial_noise_scale()], &[scale], SCHEDULE);

    let (samples, scaled) = (golden.tensor(&format!("{name}.samples")), golden.tensor(&format!("{name}.scaled")));
    let (outputs, noises) = (golden.tensor("model_outputs"), golden.tensor("noises"));
    let mut latents = (golden.tensor("start") * sampler.initial_noise_scale()).unwrap();
    let mut drawn = 0;
    for call in 0..expected.len() {
        let input = sampler.scale_input(&latents, call).unwrap().squeeze(0).unwrap();
        assert_close(&format!("{name} input of call {call}"), &input, &row(&scaled, call), SCHEDULE);
        let draws = usize::from(sampler.draws_noise(call));
        assert_eq!(facts["noise_draws_per_call"][call], draws, "{name} noise of call {call}");
        let noise = (draws > 0).then(|| row(&noises, drawn));
        drawn += draws;
        latents = sampler.step(&row(&outputs, call), call, &latents, noise.as_ref()).unwrap();
        let found = latents.squeeze(0).unwrap();
        assert_close(&format!("{name} sample after call {call}"), &found, &row(&samples, call + 1), SCHEDULE);
    }
}

#[test]
fn every_setup_follows_its_reference_call_by_call() {
    let golden = reference().fixture("schedulers");
    let setups = golden.facts().as_object().unwrap();
    assert!(setups.len() >= 21, "only {} sampler set-ups in the fixtures", setups.len());
    for (name, facts) in setups {
        follow(&golden, name, facts);
    }
}
