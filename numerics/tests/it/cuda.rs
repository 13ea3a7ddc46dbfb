//! Every operation on a CUDA device against the CPU. Without a CUDA device, these tests say so and compare nothing.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use catelier_numerics::ops::{AttentionMask, attention, checkpoint, silu};
use catelier_numerics::optim::{AdamW, AdamWConfig};
use catelier_numerics::params::Parameters;
use catelier_testkit::close::assert_close;
use catelier_testkit::tolerance::Tolerance;

use crate::material::{Case, every_operation, every_operation_on, normal, run};

#[expect(clippy::print_stderr, reason = "a test that compares nothing must say so")]
fn device() -> Option<Device> {
    Device::new_cuda(0).inspect_err(|error| eprintln!("nothing is compared, for there is no CUDA device: {error}")).ok()
}

/// Tolerances: for f32, another order of sums; for bf16, 2^-8 for every factor and every intermediate.
const PRECISIONS: [(DType, f64); 2] = [(DType::F32, 1e-4), (DType::BF16, 3e-2)];

/// The result and every gradient.
fn assert_agree(here: &Case, there: &Case, allowed: f64) {
    let (expected, found) = (run(&here.inputs, &here.f).unwrap(), run(&there.inputs, &there.f).unwrap());
    for (position, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let what = format!("tensor {position} of {} in {:?}", here.name, expected.dtype());
        assert_close(&what, found, expected, Tolerance::OfLargest(allowed));
    }
}

#[test]
fn every_operation_agrees_with_the_cpu() {
    let Some(device) = device() else { return };
    for (dtype, allowed) in PRECISIONS {
        for size in [4, 19] {
            let cases = every_operation(dtype, size).into_iter().zip(every_operation_on(&device, dtype, size));
            cases.for_each(|(here, there)| assert_agree(&here, &there, allowed));
        }
    }
}

/// Scores of 512 MiB in four blocks.
#[test]
fn attention_over_several_blocks_agrees_with_the_cpu() {
    let Some(device) = device() else { return };
    for (dtype, allowed) in PRECISIONS {
        for mask in [AttentionMask::None, AttentionMask::Causal] {
            let inputs: Vec<_> = (0..3).map(|sample| normal(sample, &[1, 4096, 8 * 5], dtype)).collect();
            let case = |device: &Device| Case {
                name: "attention in blocks",
                inputs: inputs.iter().map(|tensor| tensor.to_device(device).unwrap()).collect(),
                f: Box::new(move |t| attention(&t[0], &t[1], &t[2], 8, mask)),
            };
            assert_agree(&case(&Device::Cpu), &case(&device), allowed);
        }
    }
}

#[test]
fn a_checkpoint_without_parameters_agrees_with_the_cpu() {
    let Some(device) = device() else { return };
    let case = |device: &Device| Case {
        name: "checkpoint",
        inputs: vec![normal(0, &[5, 3], DType::F32).to_device(device).unwrap()],
        f: Box::new(|t| checkpoint(t, &[], Arc::new(|inputs, _| silu(&inputs[0])))),
    };
    assert_agree(&case(&Device::Cpu), &case(&device), 1e-5);
}

/// The state goes through the host, like a saved state.
#[test]
fn a_restored_optimizer_steps_on_the_device() {
    let Some(device) = device() else { return };
    let stepped = |device: &Device| -> Tensor {
        let variable = Var::from_tensor(&normal(0, &[7], DType::F32).to_device(device).unwrap()).unwrap();
        let parameters: Parameters = [("w".to_string(), variable.clone())].into_iter().collect();
        let mut optimizer = AdamW::new(AdamWConfig::default());
        for _ in 0..2 {
            let loss = variable.sqr().unwrap().sum_all().unwrap();
            let gradients = parameters.collect_gradients(&loss.backward().unwrap()).unwrap();
            optimizer.step(&parameters, &gradients, 0.01).unwrap();
            let state = optimizer.state();
            let on_host = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.to_device(&Device::Cpu).unwrap());
            optimizer.restore(&state.iter().map(on_host).collect()).unwrap();
        }
        variable.as_detached_tensor()
    };
    assert_close("parameters", &stepped(&device), &stepped(&Device::Cpu), Tolerance::Absolute(1e-6));
}
