//! Runs one kernel a few times and nothing else, for programs that count instructions.
//!
//! ```text
//! one_kernel                            what there is, a name and a shape on each line
//! one_kernel NAME forward|backward N    runs it N times, on one thread
//! ```
#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement may panic")]

use std::hint::black_box;

use candle_core::{Device, Result, Tensor, Var};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::ops::{
    AttentionMask, FrozenConv2d, FrozenGroupNorm, FrozenLayerNorm, FrozenLinear, attention, geglu, low_rank_linear,
};

type Operation = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send>;

/// A kernel at the proportions of Stable Diffusion, small enough for a simulated processor.
struct Kernel {
    name: &'static str,
    shape: &'static str,
    /// Its inputs, and what it does with them.
    prepare: fn() -> (Vec<Tensor>, Operation),
}

const KERNELS: &[Kernel] = &[
    Kernel { name: "conv-3x3", shape: "64 to 64 channels, 16x16", prepare: convolution },
    Kernel { name: "linear", shape: "320 to 320, 64 rows", prepare: linear },
    Kernel { name: "low-rank-linear", shape: "320 to 320, rank 8, 64 rows", prepare: low_rank },
    Kernel { name: "attention", shape: "256 to 256, 8 heads of 40", prepare: attend },
    Kernel { name: "cross-attention", shape: "256 to 77, 8 heads of 40", prepare: attend_to_text },
    Kernel { name: "group-norm-silu", shape: "320 channels, 16x16", prepare: group_norm },
    Kernel { name: "layer-norm", shape: "256 rows of 320", prepare: layer_norm },
    Kernel { name: "geglu", shape: "256 rows of 2560", prepare: gated },
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => list(),
        [name, pass, times] => {
            let kernel = KERNELS.iter().find(|kernel| kernel.name == name).expect("a kernel of the list");
            run(kernel, pass, times.parse().expect("a number of times"));
        }
        _ => panic!("expected no arguments, or NAME forward|backward N"),
    }
}

#[expect(clippy::print_stdout, reason = "for the program that runs this one")]
fn list() {
    for Kernel { name, shape, .. } in KERNELS {
        println!("{name}\t{shape}");
    }
}

/// All of it on the one thread of a pool: no other thread waits for it and spins.
fn run(kernel: &Kernel, pass: &str, times: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let (inputs, operation) = (kernel.prepare)();
        match pass {
            "forward" => (0..times).for_each(|_| drop(black_box(operation(&inputs).unwrap()))),
            "backward" => backward(&inputs, &operation, times),
            other => panic!("expected forward or backward, found {other}"),
        }
    });
}

fn backward(inputs: &[Tensor], operation: &Operation, times: usize) {
    let inputs: Vec<Tensor> = inputs.iter().map(|x| Var::from_tensor(x).unwrap().into_inner()).collect();
    let y = operation(&inputs).unwrap();
    let loss = (&y * y.detach()).unwrap().sum_all().unwrap();
    (0..times).for_each(|_| drop(black_box(loss.backward().unwrap())));
}

fn normal(shape: &[usize]) -> Tensor {
    Noise::new(1).normal(Stream("one kernel"), 0, 0, shape, &Device::Cpu).unwrap()
}

fn convolution() -> (Vec<Tensor>, Operation) {
    let layer = FrozenConv2d::new(&normal(&[64, 64, 3, 3]), None, 1, 1).unwrap();
    (vec![normal(&[1, 64, 16, 16])], Box::new(move |x| layer.forward(&x[0])))
}

fn linear() -> (Vec<Tensor>, Operation) {
    let layer = FrozenLinear::new(&normal(&[320, 320]), None).unwrap();
    (vec![normal(&[64, 320])], Box::new(move |x| layer.forward(&x[0])))
}

fn low_rank() -> (Vec<Tensor>, Operation) {
    let inputs = vec![normal(&[64, 320]), normal(&[8, 320]), normal(&[320, 8])];
    (inputs, Box::new(|x| low_rank_linear(&x[0], &x[1], &x[2], 1.0)))
}

fn attend() -> (Vec<Tensor>, Operation) {
    attend_to(256)
}

fn attend_to_text() -> (Vec<Tensor>, Operation) {
    attend_to(77)
}

fn attend_to(keys: usize) -> (Vec<Tensor>, Operation) {
    let inputs = vec![normal(&[1, 256, 320]), normal(&[1, keys, 320]), normal(&[1, keys, 320])];
    (inputs, Box::new(|x| attention(&x[0], &x[1], &x[2], 8, AttentionMask::None)))
}

fn group_norm() -> (Vec<Tensor>, Operation) {
    let layer = FrozenGroupNorm::new(&normal(&[320]), &normal(&[320]), 32, 1e-5).unwrap();
    (vec![normal(&[1, 320, 16, 16])], Box::new(move |x| layer.forward_silu(&x[0])))
}

fn layer_norm() -> (Vec<Tensor>, Operation) {
    let layer = FrozenLayerNorm::new(&normal(&[320]), &normal(&[320]), 1e-5).unwrap();
    (vec![normal(&[256, 320])], Box::new(move |x| layer.forward(&x[0])))
}

fn gated() -> (Vec<Tensor>, Operation) {
    (vec![normal(&[256, 2560])], Box::new(|x| geglu(&x[0])))
}
