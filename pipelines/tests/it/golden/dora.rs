//! Prediction, loss and all gradients of a DoRA against `dora_sd1.safetensors`.

use candle_core::{Device, Tensor};
use catelier_adapters::{AdapterSet, UpdateKind};
use catelier_pipelines::diffusion::loss;
use catelier_pipelines::models::{Recompute, UNet};
use catelier_testkit::golden::Fixture;
use catelier_testkit::tolerance::GRADIENT;

use super::adapted::{adapter, assert_all_close};
use super::{assert_output, condition, load_unet, reference};

/// The prediction on a stored draw: `<prefix><latents>`, `<prefix>timesteps` and `<prefix>context`.
fn predict(unet: &UNet, fixture: &Fixture, [prefix, latents]: [&str; 2], adapters: &AdapterSet) -> Tensor {
    let tensor = |name: &str| fixture.tensor(&format!("{prefix}{name}"));
    unet.predict(&tensor(latents), &tensor("timesteps"), &condition(fixture, prefix), adapters).unwrap()
}

#[test]
fn dora_output_loss_and_gradients_agree() {
    let [golden, plain, training] = ["dora_sd1", "unet", "lora_sd1"].map(|topic| reference().fixture(topic));
    let stored = adapter(&golden, "weight.", golden.facts()["alpha"].as_f64().unwrap());
    let (dora, parameters) = stored.trainable(&Device::Cpu).unwrap();
    assert_eq!(dora.uniform_kind(), Some(UpdateKind::Dora));
    let adapters = AdapterSet::single(&dora, 1.0);
    let mut unet = load_unet("tiny-sd1");
    for recompute in [Recompute::Nothing, Recompute::All] {
        unet.recompute(recompute);
        assert_output(&golden, "out", &predict(&unet, &plain, ["sd1.", "latents"], &adapters));
        let pred = predict(&unet, &training, ["train.", "noisy"], &adapters);
        let loss = loss::denoising(&pred, &training.tensor("train.noise")).unwrap().mean_all().unwrap();
        assert_output(&golden, "train.loss", &loss);
        let gradients = parameters.collect_gradients(&loss.backward().unwrap()).unwrap();
        assert_all_close("unet", gradients.iter().collect(), &golden, "train.grad.", GRADIENT);
    }
}
