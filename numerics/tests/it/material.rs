//! Tensors and layers for tests.

use candle_core::{DType, Device, Result, Tensor, Var};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::ops::{
    AttentionMask, FrozenConv2d, FrozenGroupNorm, FrozenLayerNorm, FrozenLinear, Fusion, Prologue, attention,
    feed_forward, geglu, gelu, low_rank_conv2d, low_rank_linear, quick_gelu, silu, softmax, upsample_nearest,
};

/// Standard normal values that depend only on `sample` and the shape.
pub(crate) fn normal(sample: u64, shape: &[usize], dtype: DType) -> Tensor {
    let tensor = Noise::new(17).normal(Stream("test"), 0, sample, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// The result of `f`, and the gradient of each input for a fixed, uneven gradient of the result.
pub(crate) fn run(inputs: &[Tensor], f: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Result<Vec<Tensor>> {
    let variables = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tracked: Vec<_> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let y = f(&tracked)?;
    let store = (&y * normal(99, y.dims(), y.dtype()).to_device(y.device())?)?.sum_all()?.backward()?;
    let mut results = vec![y.detach()];
    for input in &tracked {
        results.push(store.get(input).expect("every input receives a gradient").detach());
    }
    Ok(results)
}

/// An operation with several inputs.
type Operation = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// An operation with its name and inputs.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) f: Operation,
}

fn case(name: &'static str, inputs: Vec<Tensor>, f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Case {
    Case { name, inputs, f: Box::new(f) }
}

/// Every operation, at least once, on tensors of element type `dtype` and about `size` tokens or pixels a side.
pub(crate) fn every_operation(dtype: DType, size: usize) -> Vec<Case> {
    every_operation_on(&Device::Cpu, dtype, size)
}

/// The cases of [`every_operation`], with equal values, on any device.
pub(crate) fn every_operation_on(device: &Device, dtype: DType, size: usize) -> Vec<Case> {
    let n = |sample, shape: &[usize]| normal(sample, shape, dtype).to_device(device).unwrap();
    let linear = FrozenLinear::new(&n(10, &[5, 6]), Some(&n(11, &[5]))).unwrap();
    let layer_norm = FrozenLayerNorm::new(&n(12, &[6]), &n(13, &[6]), 1e-5).unwrap();
    let group_norm = FrozenGroupNorm::new(&n(14, &[6]), &n(15, &[6]), 3, 1e-6).unwrap();
    let (group_norm_silu, group_norm_alone) = (group_norm.clone(), group_norm.clone());
    let x = n(0, &[2, size, 6]);
    let image = n(1, &[2, 6, size, size + 1]);
    let (q, k, v) = (n(2, &[2, size, 6]), n(3, &[2, size + 2, 6]), n(4, &[2, size + 2, 6]));
    let (down, up) = (n(5, &[3, 6]), n(6, &[4, 3]));
    let (conv_down, conv_up) = (n(7, &[2, 6, 3, 3]), n(8, &[4, 2, 1, 1]));
    let mut cases = vec![
        case("softmax", vec![x.clone()], |t| softmax(&t[0])),
        case("silu", vec![x.clone()], |t| silu(&t[0])),
        case("gelu", vec![x.clone()], |t| gelu(&t[0])),
        case("quick gelu", vec![x.clone()], |t| quick_gelu(&t[0])),
        case("geglu", vec![x.clone()], |t| geglu(&t[0])),
        case("linear", vec![x.clone()], move |t| linear.forward(&t[0])),
        case("layer norm", vec![x.clone()], move |t| layer_norm.forward(&t[0])),
        case("group norm", vec![image.clone()], move |t| group_norm.forward(&t[0])),
        case("group norm with silu", vec![image.clone()], move |t| group_norm_silu.forward_silu(&t[0])),
        case("upsample", vec![image.clone()], move |t| upsample_nearest(&t[0], (2 * size + 1, 3 * size))),
        case("attention", vec![q.clone(), k.clone(), v.clone()], |t| {
            attention(&t[0], &t[1], &t[2], 2, AttentionMask::None)
        }),
        case("causal attention", vec![q, k, v], |t| attention(&t[0], &t[1], &t[2], 3, AttentionMask::Causal)),
        case("low-rank linear", vec![x, down, up], |t| low_rank_linear(&t[0], &t[1], &t[2], 0.7)),
        case("low-rank conv", vec![image.clone(), conv_down.clone(), conv_up.clone()], |t| {
            low_rank_conv2d(&t[0], &t[1], &t[2], 0.7, 1, 1)
        }),
        case("low-rank conv with stride", vec![image.clone(), conv_down, conv_up], |t| {
            low_rank_conv2d(&t[0], &t[1], &t[2], 0.7, 2, 1)
        }),
    ];
    let (conv, norm) = (FrozenConv2d::new(&n(22, &[6, 6, 3, 3]), Some(&n(23, &[6])), 1, 1), group_norm_alone);
    let (conv, shift) = (conv.unwrap(), n(24, &[2, 6]));
    cases.push(case("conv2d with all around it", vec![image.clone(), n(25, &[2, 6, size, size + 1])], move |t| {
        let shift = shift.narrow(0, 0, t[0].dim(0)?)?;
        conv.forward_fused(&t[0], Some(&shift), Fusion::after(Prologue::GroupNormSilu(&norm)).onto(&t[1]))
    }));
    let layer = FrozenLinear::new(&n(26, &[5, 6]), Some(&n(27, &[5]))).unwrap();
    let factors = [n(0, &[2, size, 6]), n(5, &[3, 6]), n(28, &[5, 3])];
    for residual in [None, Some(n(37, &[2, size, 5]))] {
        let (layer, inputs) = (layer.clone(), factors.iter().cloned().chain(residual).collect());
        cases.push(case("low-rank linear on its layer", inputs, move |t| {
            layer.forward_adapted(&t[0], &t[1], &t[2], 0.7, t.get(3))
        }));
    }
    let factors = [image.clone(), n(7, &[2, 6, 3, 3]), n(8, &[4, 2, 1, 1])];
    for (stride, residual) in [(1, Some(n(38, &[2, 4, size, size + 1]))), (2, None)] {
        let layer = FrozenConv2d::new(&n(33, &[4, 6, 3, 3]), Some(&n(21, &[4])), stride, 1).unwrap();
        let inputs = factors.iter().cloned().chain(residual).collect();
        cases.push(case("low-rank conv on its layer", inputs, move |t| {
            layer.forward_adapted(&t[0], &t[1], &t[2], 0.7, t.get(3))
        }));
    }
    let norm = FrozenGroupNorm::new(&n(14, &[6]), &n(15, &[6]), 3, 1e-6).unwrap();
    let into = FrozenConv2d::new(&n(34, &[5, 6, 1, 1]), Some(&n(11, &[5])), 1, 0).unwrap();
    cases.push(case("normalised map to tokens", vec![image.clone()], move |t| {
        into.map_to_tokens(&t[0], Fusion::after(Prologue::GroupNorm(&norm)))
    }));
    let back = FrozenLinear::new(&n(35, &[5, 6]), Some(&n(11, &[5]))).unwrap();
    cases.push(case(
        "tokens to map on a residual",
        vec![n(0, &[2, size * (size + 1), 6]), n(36, &[2, 5, size, size + 1])],
        move |t| back.tokens_to_map(&t[0], (size, size + 1), Fusion::default().onto(&t[1])),
    ));
    let norm = FrozenLayerNorm::new(&n(12, &[6]), &n(13, &[6]), 1e-5).unwrap();
    let widen = FrozenLinear::new(&n(29, &[8, 6]), Some(&n(30, &[8]))).unwrap();
    let narrow = FrozenLinear::new(&n(31, &[6, 4]), Some(&n(32, &[6]))).unwrap();
    cases.push(case("feed-forward", vec![n(0, &[2, size, 6])], move |t| feed_forward(&t[0], &norm, &widen, &narrow)));
    for (kernel, stride, padding) in
        [((1, 1), 1, 0), ((3, 3), 1, 1), ((3, 3), 2, 1), ((3, 3), 2, 0), ((2, 2), 2, 0), ((3, 2), 1, 2)]
    {
        let weight = n(20, &[4, 6, kernel.0, kernel.1]);
        let layer = FrozenConv2d::new(&weight, Some(&n(21, &[4])), stride, padding).unwrap();
        cases.push(case("conv2d", vec![image.clone()], move |t| layer.forward(&t[0])));
    }
    cases
}
