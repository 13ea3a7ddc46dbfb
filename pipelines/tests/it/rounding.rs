//! The accuracy of bf16 weights on the CPU: one step of the embedded base against the same step in f32.
//! `cargo test -p catelier-pipelines --test it rounding -- --nocapture` prints the figures.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use catelier_adapters::AdapterSet;
use catelier_numerics::params::Gradients;
use catelier_pipelines::models::UNet;
use catelier_pipelines::models::files::ModelFiles;
use catelier_testkit::close::relative_error;

use crate::models::{cat_gradients, condition, full_adapter, normal};

/// The prediction without an adapter, and the gradients of a CAT step for an adapter of every module.
fn step(dtype: DType) -> (Tensor, Gradients) {
    let base = ModelFiles::folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("../base"));
    let unet = UNet::load(&base, dtype, &Device::Cpu).unwrap();
    let (condition, target) = (condition(&unet, 2), normal("target", &[2, 4, 16, 16]));
    let timesteps = Tensor::new(&[17u32, 803], &Device::Cpu).unwrap();
    let latents = normal("latents", &[2, 4, 16, 16]);
    let noise_pred = unet.predict(&latents, &timesteps, &condition, &AdapterSet::base()).unwrap();
    (noise_pred, cat_gradients(&unet, &condition, &target, &full_adapter(&unet)))
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are for docs/precision.md")]
fn weights_in_bf16_move_predictions_and_gradients_by_little() {
    let ((expected_pred, expected), (found_pred, found)) = (step(DType::F32), step(DType::BF16));
    let pred = relative_error([(&found_pred, &expected_pred)]);
    let errors = expected.iter().map(|(name, expected)| (relative_error([(found.get(name).unwrap(), expected)]), name));
    let mut errors: Vec<(f64, &str)> = errors.collect();
    errors.sort_by(|a, b| a.0.total_cmp(&b.0));
    let [median, most, (largest, worst)] =
        [errors.len() / 2, errors.len() * 95 / 100, errors.len() - 1].map(|index| errors[index]);
    println!("noise_pred {pred:.2e}; {} gradients: median {:.2e}, 95 % below {:.2e}", errors.len(), median.0, most.0);
    println!("largest {largest:.2e} ({worst})");
    assert!(pred < 0.01 && median.0 < 0.02 && largest < 0.2, "{pred} {median:?} {largest} {worst}");
}
