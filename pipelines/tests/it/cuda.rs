//! Whole models on a CUDA device against the CPU. Without a device these tests say so and compare nothing.

use candle_core::{DType, Device, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::optim::{AdamW, AdamWConfig};
use catelier_numerics::params::{Gradients, Parameters};
use catelier_pipelines::generation::{GenerateRequest, generate};
use catelier_pipelines::models::base::BaseModel;
use catelier_pipelines::models::{AddedCondition, Condition, Recompute, UNet};
use catelier_testkit::close::assert_close;
use catelier_testkit::tolerance::{PIXEL_LEVEL, Tolerance};

use crate::models::{MODELS, cat_gradients, condition, files, full_adapter, normal, unet};

#[expect(clippy::print_stderr, reason = "a test that compares nothing must say so")]
fn device() -> Option<Device> {
    Device::new_cuda(0).inspect_err(|error| eprintln!("nothing is compared, for there is no CUDA device: {error}")).ok()
}

fn placed(condition: &Condition, device: &Device) -> Condition {
    let to = |tensor: &Tensor| tensor.to_device(device).unwrap();
    let added = condition.added.as_ref();
    let added = added.map(|added| AddedCondition { pooled: to(&added.pooled), time_ids: to(&added.time_ids) });
    Condition { context: to(&condition.context), added }
}

/// Gradients of a CAT step on tiny `model`, and the factors after AdamW's step.
fn step(model: &str, dtype: DType, device: &Device, checkpointing: bool) -> (Gradients, Parameters) {
    let mut loaded = UNet::load(&files(model), dtype, device).unwrap();
    loaded.recompute(if checkpointing { Recompute::All } else { Recompute::Nothing });
    let here = unet(model);
    let (adapter, parameters) = full_adapter(&here).0.trainable(device).unwrap();
    let target = normal("target", &[2, 4, 8, 8]).to_device(device).unwrap();
    let gradients =
        cat_gradients(&loaded, &placed(&condition(&here, 2), device), &target, &(adapter, parameters.clone()));
    AdamW::new(AdamWConfig::default()).step(&parameters, &gradients, 1e-3).unwrap();
    (gradients, parameters)
}

#[test]
fn a_training_step_agrees_with_the_cpu() {
    let Some(device) = device() else { return };
    for model in MODELS {
        for checkpointing in [false, true] {
            let (expected, expected_after) = step(model, DType::F32, &Device::Cpu, checkpointing);
            let (found, found_after) = step(model, DType::F32, &device, checkpointing);
            let rounding = Tolerance::Absolute(1e-4 * expected.global_norm().unwrap());
            for (name, gradient) in expected.iter() {
                assert_close(name, found.get(name).unwrap(), gradient, rounding);
                // AdamW's first step is the gradient's sign: a gradient that cancels to rounding error may go either
                // way.
                let (after, moved) = (expected_after.get(name).unwrap(), Tolerance::Absolute(2.1e-3));
                assert_close(name, found_after.get(name).unwrap(), after, moved);
            }
        }
    }
}

#[test]
fn gradients_in_bf16_point_where_those_in_f32_do() {
    let Some(device) = device() else { return };
    for model in MODELS {
        let (expected, _) = step(model, DType::F32, &Device::Cpu, false);
        let (found, _) = step(model, DType::BF16, &device, false);
        let dot = |left: &Gradients, right: &Gradients| -> f64 {
            let product = |(name, tensor): (&str, &Tensor)| {
                let other = right.get(name).unwrap().to_device(&Device::Cpu).unwrap();
                let tensor = tensor.to_device(&Device::Cpu).unwrap();
                f64::from((tensor * other).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
            };
            left.iter().map(product).sum()
        };
        let cosine = dot(&expected, &found) / (dot(&expected, &expected) * dot(&found, &found)).sqrt();
        assert!(cosine > 0.99, "{model}: cosine {cosine}");
    }
}

#[test]
fn an_image_agrees_with_the_cpu() {
    let Some(device) = device() else { return };
    let request = GenerateRequest {
        prompts: vec!["a red teapot".into()],
        seeds: vec![3],
        steps: 3,
        width: 64,
        height: 32,
        ..GenerateRequest::default()
    };
    let draw = |device: &Device| -> Tensor {
        let base = BaseModel::load(&files("tiny-sd1"), DType::F32, device).unwrap();
        let image = generate(&base, &request, &AdapterSet::base()).unwrap().remove(0);
        Tensor::from_vec(image.into_raw(), (32, 64, 3), &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
    };
    assert_close("image", &draw(&device), &draw(&Device::Cpu), PIXEL_LEVEL);
}

#[test]
fn the_autoencoder_agrees_with_the_cpu() {
    let Some(device) = device() else { return };
    let mean = |device: &Device| {
        let base = BaseModel::load(&files("tiny-sd1"), DType::F32, device).unwrap();
        base.vae.encode(&normal("image", &[1, 3, 64, 32]).to_device(device).unwrap()).unwrap().mode()
    };
    // The device adds in another order, as it does for operations in f32.
    assert_close("latents", &mean(&device), &mean(&Device::Cpu), Tolerance::OfLargest(1e-4));
}
