//! Every gradient is that of the function, as finite differences in f64 say.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use catelier_numerics::ops::{FrozenLinear, checkpoint, composed, gelu, low_rank_linear};
use catelier_testkit::finite_difference::check;

use crate::material::{every_operation, normal};

#[test]
fn kernels_have_the_gradients_of_their_functions() {
    for case in every_operation(DType::F64, 4) {
        check(case.name, &case.inputs, &case.f);
    }
}

#[test]
fn composed_operations_have_the_gradients_of_their_functions() {
    let image = normal(0, &[1, 2, 5, 4], DType::F64);
    let (weight, up) = (normal(1, &[3, 2, 3, 3], DType::F64), normal(2, &[2, 3, 1, 1], DType::F64));
    for stride in [1, 2] {
        check("composed low-rank conv", &[image.clone(), weight.clone(), up.clone()], |t| {
            composed::low_rank_conv2d(&t[0], &t[1], &t[2], 0.5, stride, 1)
        });
    }
    check("composed upsampling", std::slice::from_ref(&image), |t| composed::upsample_nearest(&t[0], (7, 8)));
    let affine = [normal(3, &[4], DType::F64), normal(4, &[4], DType::F64)];
    check("composed layer norm", &[image, affine[0].clone(), affine[1].clone()], |t| {
        composed::layer_norm(&t[0], &t[1], &t[2], 1e-5)
    });
}

#[test]
fn an_input_used_twice_receives_both_gradients() {
    let image = normal(0, &[1, 1, 3, 2], DType::F64);
    check("upsampled and plain", &[image], |t| {
        let up = catelier_numerics::ops::upsample_nearest(&t[0], (6, 4))?;
        up.sum_all()? + (t[0].sqr()? * 10.0)?.sum_all()?
    });
}

#[test]
fn checkpoint_has_the_gradients_of_what_it_runs() {
    let layer = FrozenLinear::new(&normal(10, &[4, 3], DType::F64), None).unwrap();
    let tensors: Vec<Tensor> = [&[2, 3][..], &[2, 4], &[2, 3], &[4, 2]]
        .into_iter()
        .enumerate()
        .map(|(sample, shape)| normal(sample as u64, shape, DType::F64))
        .collect();
    check("checkpoint", &tensors, |t| {
        let layer = layer.clone();
        let constant = normal(30, &[4], DType::F64);
        let inputs = [t[0].clone(), constant, t[1].clone()];
        checkpoint(
            &inputs,
            &t[2..],
            Arc::new(move |inputs, parameters| {
                let hidden =
                    (layer.forward(&inputs[0])? + low_rank_linear(&inputs[0], &parameters[0], &parameters[1], 0.5)?)?;
                gelu(&hidden)?.broadcast_mul(&inputs[1])? * &inputs[2]
            }),
        )
    });
}
