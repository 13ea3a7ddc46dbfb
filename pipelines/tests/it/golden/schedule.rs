//! Betas, their products, and noisy latents.

use catelier_pipelines::diffusion::NoiseSchedule;
use catelier_testkit::close::{assert_close, assert_numbers_close};
use catelier_testkit::tolerance::SCHEDULE;
use serde_json::json;

use super::{reference, schedule_of};

fn tiny_sd1(changes: serde_json::Value) -> NoiseSchedule {
    let path = reference().model("tiny-sd1").join("scheduler/scheduler_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    schedule_of(&config)
}

#[test]
fn betas_and_their_products_agree() {
    let golden = reference().fixture("schedulers");
    for (prefix, rescaled) in [("", false), ("zero_snr.", true)] {
        let schedule = tiny_sd1(json!({ "rescale_betas_zero_snr": rescaled }));
        for (name, found) in [("betas", schedule.betas()), ("alphas_cumprod", schedule.alphas_cumprod())] {
            let name = format!("{prefix}{name}");
            assert_numbers_close(&name, found, &golden.values(&name), SCHEDULE);
        }
    }
}

#[test]
fn noisy_latents_and_velocity_agree() {
    let golden = reference().fixture("schedulers");
    let (x0, noise) = (golden.tensor("add_noise.x0"), golden.tensor("add_noise.noise"));
    let timesteps = golden.whole_numbers("add_noise.timesteps");
    let schedule = tiny_sd1(json!({}));
    let noisy = schedule.add_noise(&x0, &noise, &timesteps).unwrap();
    assert_close("noisy latents", &noisy, &golden.tensor("add_noise.out"), SCHEDULE);
    let velocity = schedule.velocity(&x0, &noise, &timesteps).unwrap();
    assert_close("velocity", &velocity, &golden.tensor("add_noise.velocity"), SCHEDULE);
}

#[test]
fn the_target_is_what_the_model_was_trained_on() {
    for (model, topic) in [("tiny-sd2", "lora_sd2"), ("tiny-sdxl", "lora_sdxl")] {
        let golden = reference().fixture(topic);
        let path = reference().model(model).join("scheduler/scheduler_config.json");
        let schedule = schedule_of(&serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap());
        let (x0, noise) = (golden.tensor("train.x0"), golden.tensor("train.noise"));
        let timesteps = golden.whole_numbers("train.timesteps");
        let target = schedule.target(&x0, &noise, &timesteps).unwrap();
        assert_close(&format!("{model} target"), &target, &golden.tensor("train.target"), SCHEDULE);
        let noisy = schedule.add_noise(&x0, &noise, &timesteps).unwrap();
        assert_close(&format!("{model} noisy"), &noisy, &golden.tensor("train.noisy"), SCHEDULE);
    }
}
