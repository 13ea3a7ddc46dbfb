//! No operation drops a gradient, and frozen weights get none.

use std::sync::Arc;

use candle_core::{CpuStorage, DType, Result, Storage, Tensor, Var};
use catelier_numerics::ops::{
    AttentionMask, FrozenConv2d, FrozenLinear, attention, backward, checkpoint, gelu, low_rank_linear, softmax,
};

use crate::material::{every_operation, normal, run, values};

#[test]
fn every_operation_passes_a_gradient_to_every_input() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        for case in every_operation(dtype, 5) {
            let results = run(&case.inputs, &case.f).unwrap();
            for (result, like) in results[1..].iter().zip(&case.inputs) {
                assert_eq!((result.dims(), result.dtype()), (like.dims(), dtype), "{}", case.name);
                let largest = values(result).into_iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                assert!(largest > 1e-3 && largest.is_finite(), "{}: largest gradient {largest}", case.name);
            }
        }
    }
}

#[test]
fn half_precision_gives_the_f32_result_rounded() {
    for (wide, half) in every_operation(DType::F32, 5).into_iter().zip(every_operation(DType::BF16, 5)) {
        let exact = values(&(wide.f)(&wide.inputs).unwrap());
        let rounded = values(&(half.f)(&half.inputs).unwrap());
        let largest = exact.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        let worst = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 0.03 * largest, "{}: difference {worst} of values up to {largest}", wide.name);
    }
}

#[test]
fn frozen_weights_receive_no_gradient_even_if_given_as_variables() {
    let weight = Var::from_tensor(&normal(0, &[4, 3], DType::F32)).unwrap();
    let kernel = Var::from_tensor(&normal(1, &[2, 4, 1, 1], DType::F32)).unwrap();
    let x = Var::from_tensor(&normal(2, &[1, 5, 3], DType::F32)).unwrap();
    let y = FrozenLinear::new(&weight, None).unwrap().forward(&x).unwrap();
    let y = FrozenConv2d::new(&kernel, None, 1, 0).unwrap().forward(&y.t().unwrap().unsqueeze(3).unwrap()).unwrap();
    let store = y.sum_all().unwrap().backward().unwrap();
    assert!(store.get(&x).is_some());
    assert!(store.get(&weight).is_none() && store.get(&kernel).is_none());
}

#[test]
fn an_untracked_input_costs_nothing_and_breaks_nothing() {
    let x = normal(0, &[3, 6], DType::F32);
    let down = Var::from_tensor(&normal(1, &[2, 6], DType::F32)).unwrap();
    let up = Var::from_tensor(&normal(2, &[5, 2], DType::F32)).unwrap();
    let store = low_rank_linear(&x, &down, &up, 2.0).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(store.get(&x).is_none());
    assert!(store.get(&down).is_some() && store.get(&up).is_some());
}

#[test]
fn a_graph_that_is_used_up_gives_the_same_gradients_and_its_memory_back() {
    for case in every_operation(DType::F32, 5) {
        let variables: Vec<Var> = case.inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
        let tracked: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
        let result = (case.f)(&tracked).unwrap();
        let objective = result.sqr().unwrap().sum_all().unwrap();
        let (kept, used_up) = (objective.backward().unwrap(), backward(objective).unwrap());
        for variable in &variables {
            let [kept, used_up] = [&kept, &used_up].map(|gradients| values(gradients.get(variable).unwrap()));
            assert_eq!(kept, used_up, "{}", case.name);
            assert_eq!(values(variable).len(), variable.elem_count(), "variables stay");
        }
        let (storage, _) = result.storage_and_layout();
        let Storage::Cpu(CpuStorage::U8(nothing)) = &*storage else { panic!("{} keeps its result", case.name) };
        assert!(nothing.is_empty());
    }
}

#[test]
fn empty_batches_pass_through_every_operation() {
    for case in every_operation(DType::F32, 5) {
        let empty: Vec<_> = case
            .inputs
            .iter()
            .enumerate()
            .map(|(position, input)| {
                let weights = case.name.starts_with("low-rank") && matches!(position, 1 | 2);
                if weights { input.clone() } else { input.narrow(0, 0, 0).unwrap() }
            })
            .collect();
        let results = run(&empty, &case.f).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert_eq!(results[0].dim(0).unwrap(), 0, "{}", case.name);
        for (result, input) in results[1..].iter().zip(&empty) {
            assert_eq!(result.dims(), input.dims(), "{}", case.name);
            assert!(values(result).iter().all(|value| *value == 0.0), "{}", case.name);
        }
    }
}

#[test]
fn attention_to_no_keys_is_zero() {
    let (q, none) = (normal(0, &[1, 3, 4], DType::F32), normal(1, &[1, 0, 4], DType::F32));
    let y = attention(&q, &none, &none, 2, AttentionMask::None).unwrap();
    assert_eq!(values(&y), [0.0; 12]);
}

#[test]
fn nan_is_never_hidden() {
    for case in every_operation(DType::F32, 4) {
        let mut inputs = case.inputs.clone();
        let mut numbers: Vec<f32> = inputs[0].flatten_all().unwrap().to_vec1().unwrap();
        numbers[3] = f32::NAN;
        inputs[0] = Tensor::from_vec(numbers, inputs[0].shape(), inputs[0].device()).unwrap();
        let y = values(&(case.f)(&inputs).unwrap());
        assert!(y.iter().any(|value| value.is_nan()), "{}", case.name);
    }
}

#[test]
fn masked_scores_of_minus_infinity_get_no_weight() {
    let x = Tensor::new(&[[0.0f32, f32::NEG_INFINITY, 0.0]], &candle_core::Device::Cpu).unwrap();
    assert_eq!(values(&softmax(&x).unwrap()), [0.5, 0.0, 0.5]);
}

#[test]
fn wrong_shapes_are_errors_that_name_the_operation() {
    let x = normal(0, &[2, 3, 6], DType::F32);
    let linear = FrozenLinear::new(&normal(1, &[4, 5], DType::F32), None).unwrap();
    assert!(linear.forward(&x).unwrap_err().to_string().contains("linear: expected [..., 5]"));
    let conv = FrozenConv2d::new(&normal(2, &[4, 5, 3, 3], DType::F32), None, 1, 0).unwrap();
    assert!(conv.forward(&x).unwrap_err().to_string().contains("conv2d: expected [batch, 5"));
    let small = normal(3, &[1, 5, 2, 2], DType::F32);
    assert!(conv.forward(&small).unwrap_err().to_string().contains("too short"));
    assert!(attention(&x, &x, &x, 4, AttentionMask::None).unwrap_err().to_string().contains("4 heads"));
    let odd = normal(4, &[2, 3], DType::F32);
    assert!(catelier_numerics::ops::geglu(&odd).unwrap_err().to_string().contains("even"));
    let bias = normal(5, &[3], DType::F32);
    assert!(FrozenLinear::new(&normal(1, &[4, 5], DType::F32), Some(&bias)).is_err());
    assert!(FrozenConv2d::new(&normal(2, &[4, 5, 3, 3], DType::F32), None, 0, 0).is_err());
}

#[test]
fn checkpoint_is_transparent_bit_for_bit() {
    let segment = |t: &[Tensor], p: &[Tensor]| -> Result<Tensor> { gelu(&low_rank_linear(&t[0], &p[0], &p[1], 1.5)?) };
    let tensors = [normal(0, &[3, 6], DType::F32), normal(1, &[2, 6], DType::F32), normal(2, &[5, 2], DType::F32)];
    let plain = run(&tensors, &|t| segment(&t[..1], &t[1..])).unwrap();
    let saved = run(&tensors, &|t| checkpoint(&t[..1], &t[1..], Arc::new(segment))).unwrap();
    for (plain, saved) in plain.iter().zip(&saved) {
        assert_eq!(values(plain), values(saved));
    }
}

#[test]
fn checkpoint_of_constants_is_constant() {
    let x = normal(0, &[3, 6], DType::F32);
    let y = checkpoint(&[x], &[], Arc::new(|t, _| gelu(&t[0]))).unwrap();
    assert!(!y.track_op());
}

#[test]
fn checkpoint_passes_integers_beside_tracked_tensors() {
    let table = Var::from_tensor(&normal(0, &[4, 3], DType::F32)).unwrap();
    let ids = Tensor::new(&[2u32, 0, 2], table.device()).unwrap();
    let y = checkpoint(&[ids], &[table.as_tensor().clone()], Arc::new(|t, p| p[0].index_select(&t[0], 0))).unwrap();
    let gradient = y.sum_all().unwrap().backward().unwrap().remove(&table).unwrap();
    assert_eq!(values(&gradient), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0]);
}
