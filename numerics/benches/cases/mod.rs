//! The most used kernels at sizes chosen by the caller, for the benchmark and the example `one_kernel`.

use candle_core::{DType, Device, Result, Tensor, Var};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::ops::{
    self, AttentionMask, FrozenConv2d, FrozenGroupNorm, FrozenLayerNorm, FrozenLinear, Fusion, Prologue,
};

const HEADS: usize = 8;
const RANK: usize = 8;

type Operation = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// A kernel with its inputs.
pub(crate) struct Case {
    pub(crate) shape: String,
    inputs: Vec<Tensor>,
    operation: Operation,
}

impl Case {
    /// A case with random inputs of the shapes `inputs`.
    fn new(shape: String, inputs: &[&[usize]], operation: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Self {
        Self { shape, inputs: inputs.iter().map(|dims| normal(dims)).collect(), operation: Box::new(operation) }
    }

    pub(crate) fn forward(&self) -> Tensor {
        (self.operation)(&self.inputs).unwrap()
    }

    /// A loss whose backward pass runs the kernel's, with gradients to all inputs.
    pub(crate) fn loss(&self) -> Tensor {
        let variables: Vec<Tensor> = self.inputs.iter().map(|x| Var::from_tensor(x).unwrap().into_inner()).collect();
        let y = (self.operation)(&variables).unwrap();
        (&y * y.detach()).unwrap().sum_all().unwrap()
    }
}

fn normal(dims: &[usize]) -> Tensor {
    Noise::new(1).normal(Stream("kernels"), 0, 0, dims, &Device::Cpu).unwrap()
}

/// Random weights scaled to keep the size of activations: a gate far from zero may take another branch of the
/// exponential.
fn weight(dtype: DType, dims: &[usize]) -> Tensor {
    let inputs: usize = dims[1..].iter().product();
    (normal(dims) / (inputs as f64).sqrt()).unwrap().to_dtype(dtype).unwrap()
}

fn conv2d(dtype: DType, (inputs, outputs): (usize, usize), (kernel, stride): (usize, usize)) -> FrozenConv2d {
    let weight = weight(dtype, &[outputs, inputs, kernel, kernel]);
    FrozenConv2d::new(&weight, Some(&normal(&[outputs])), stride, kernel / 2).unwrap()
}

fn projection(dtype: DType, (inputs, outputs): (usize, usize)) -> FrozenLinear {
    FrozenLinear::new(&weight(dtype, &[outputs, inputs]), Some(&normal(&[outputs]))).unwrap()
}

fn group_norm(channels: usize) -> FrozenGroupNorm {
    FrozenGroupNorm::new(&normal(&[channels]), &normal(&[channels]), 32, 1e-5).unwrap()
}

fn layer_norm(width: usize) -> FrozenLayerNorm {
    FrozenLayerNorm::new(&normal(&[width]), &normal(&[width]), 1e-5).unwrap()
}

pub(crate) fn convolution(
    dtype: DType,
    (inputs, outputs): (usize, usize),
    window: (usize, usize),
    side: usize,
) -> Case {
    let layer = conv2d(dtype, (inputs, outputs), window);
    let shape = format!("{inputs} to {outputs} channels, {side}x{side}");
    Case::new(shape, &[&[1, inputs, side, side]], move |x| layer.forward(&x[0]))
}

/// The second convolution of a residual block.
pub(crate) fn residual_convolution(dtype: DType, channels: usize, side: usize) -> Case {
    let (norm, layer) = (group_norm(channels), conv2d(dtype, (channels, channels), (3, 1)));
    let image: &[usize] = &[1, channels, side, side];
    Case::new(format!("{channels} channels, {side}x{side}"), &[image, image], move |x| {
        layer.forward_fused(&x[0], None, Fusion::after(Prologue::GroupNormSilu(&norm)).onto(&x[1]))
    })
}

pub(crate) fn adapted_convolution(dtype: DType, channels: usize, side: usize) -> Case {
    let layer = conv2d(dtype, (channels, channels), (3, 1));
    let shape = format!("{channels} to {channels} channels, rank {RANK}, {side}x{side}");
    let factors: [&[usize]; 2] = [&[RANK, channels, 3, 3], &[channels, RANK, 1, 1]];
    Case::new(shape, &[&[1, channels, side, side], factors[0], factors[1]], move |x| {
        layer.forward_adapted(&x[0], &x[1], &x[2], 1.0, None)
    })
}

/// The projection into the transformer of a level.
pub(crate) fn map_to_tokens(dtype: DType, channels: usize, side: usize) -> Case {
    let (norm, layer) = (group_norm(channels), conv2d(dtype, (channels, channels), (1, 1)));
    Case::new(format!("{channels} channels, {side}x{side}"), &[&[1, channels, side, side]], move |x| {
        layer.map_to_tokens(&x[0], Fusion::after(Prologue::GroupNorm(&norm)))
    })
}

/// The projection out of the transformer of a level.
pub(crate) fn tokens_to_map(dtype: DType, channels: usize, side: usize) -> Case {
    let layer = conv2d(dtype, (channels, channels), (1, 1));
    let inputs: [&[usize]; 2] = [&[1, side * side, channels], &[1, channels, side, side]];
    Case::new(format!("{channels} channels, {side}x{side}"), &inputs, move |x| {
        layer.tokens_to_map(&x[0], (side, side), Fusion::default().onto(&x[1]))
    })
}

/// Upsampling to twice the side.
pub(crate) fn upsample(channels: usize, side: usize) -> Case {
    let shape = format!("{channels} channels, {side}x{side} to {0}x{0}", 2 * side);
    Case::new(shape, &[&[1, channels, side, side]], move |x| ops::upsample_nearest(&x[0], (2 * side, 2 * side)))
}

pub(crate) fn linear(dtype: DType, (inputs, outputs): (usize, usize), rows: usize) -> Case {
    let layer = projection(dtype, (inputs, outputs));
    Case::new(format!("{inputs} to {outputs}, {rows} rows"), &[&[rows, inputs]], move |x| layer.forward(&x[0]))
}

/// A projection to queries, keys or values, without bias.
pub(crate) fn linear_without_bias(dtype: DType, (inputs, outputs): (usize, usize), rows: usize) -> Case {
    let layer = FrozenLinear::new(&weight(dtype, &[outputs, inputs]), None).unwrap();
    Case::new(format!("{inputs} to {outputs}, {rows} rows"), &[&[rows, inputs]], move |x| layer.forward(&x[0]))
}

/// The output projection of attention with a low-rank update, on its residual.
pub(crate) fn adapted_linear(dtype: DType, width: usize, rows: usize) -> Case {
    let layer = projection(dtype, (width, width));
    low_rank(width, rows, move |x| layer.forward_adapted(&x[0], &x[1], &x[2], 1.0, Some(&x[3])))
}

/// A projection to queries, keys or values with a low-rank update.
pub(crate) fn adapted_linear_without_bias(dtype: DType, width: usize, rows: usize) -> Case {
    let layer = FrozenLinear::new(&weight(dtype, &[width, width]), None).unwrap();
    low_rank(width, rows, move |x| layer.forward_adapted(&x[0], &x[1], &x[2], 1.0, None))
}

pub(crate) fn low_rank_linear(width: usize, rows: usize) -> Case {
    low_rank(width, rows, |x| ops::low_rank_linear(&x[0], &x[1], &x[2], 1.0))
}

/// A low-rank operation on rows, both factors and a residual.
fn low_rank(width: usize, rows: usize, operation: impl Fn(&[Tensor]) -> Result<Tensor> + 'static) -> Case {
    let shape = format!("{width} to {width}, rank {RANK}, {rows} rows");
    Case::new(shape, &[&[rows, width], &[RANK, width], &[width, RANK], &[rows, width]], operation)
}

pub(crate) fn feed_forward(dtype: DType, width: usize, rows: usize) -> Case {
    let norm = layer_norm(width);
    let (widen, narrow) = (projection(dtype, (width, 8 * width)), projection(dtype, (4 * width, width)));
    Case::new(format!("{rows} rows of {width}"), &[&[rows, width]], move |x| {
        ops::feed_forward(&x[0], &norm, &widen, &narrow)
    })
}

pub(crate) fn attention(queries: usize, keys: usize, width: usize) -> Case {
    attend(queries, keys, width, |x| ops::attention(&x[0], &x[1], &x[2], HEADS, AttentionMask::None))
}

pub(crate) fn attention_rounded(queries: usize, keys: usize, width: usize) -> Case {
    attend(queries, keys, width, |x| ops::attention_rounded(&x[0], &x[1], &x[2], HEADS, AttentionMask::None))
}

fn attend(queries: usize, keys: usize, width: usize, operation: fn(&[Tensor]) -> Result<Tensor>) -> Case {
    let shape = format!("{queries} to {keys}, {HEADS} heads of {}", width / HEADS);
    Case::new(shape, &[&[1, queries, width], &[1, keys, width], &[1, keys, width]], operation)
}

pub(crate) fn group_norm_silu(channels: usize, side: usize) -> Case {
    let norm = group_norm(channels);
    let shape = format!("{channels} channels, {side}x{side}");
    Case::new(shape, &[&[1, channels, side, side]], move |x| norm.forward_silu(&x[0]))
}

pub(crate) fn layer_normalisation(width: usize, rows: usize) -> Case {
    let norm = layer_norm(width);
    of_rows(width, rows, move |x| norm.forward(x))
}

/// An operation with one input tensor and no weights.
pub(crate) fn of_rows(width: usize, rows: usize, operation: impl Fn(&Tensor) -> Result<Tensor> + 'static) -> Case {
    Case::new(format!("{rows} rows of {width}"), &[&[rows, width]], move |x| operation(&x[0]))
}
