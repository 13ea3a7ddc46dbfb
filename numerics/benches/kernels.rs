//! How fast the kernels are at the shapes of Stable Diffusion 1.5: `cargo bench -p catelier-numerics`.
//!
//! Figures are per second of work that was counted, so that they compare with the processor's peak. One thread.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may panic")]

use std::hint::black_box;

use candle_core::{DType, Device, Result, Tensor, Var};
use catelier_numerics::noise::{Noise, Stream};
use catelier_numerics::ops::{
    AttentionMask, FrozenConv2d, FrozenGroupNorm, FrozenLayerNorm, FrozenLinear, attention, geglu, low_rank_linear,
};
use catelier_numerics::work;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn normal(shape: &[usize]) -> Tensor {
    Noise::new(1).normal(Stream("bench"), 0, 0, shape, &Device::Cpu).unwrap()
}

/// Times `operation` forward, and its backward pass by itself.
fn both(criterion: &mut Criterion, name: &str, inputs: &[Tensor], operation: &dyn Fn(&[Tensor]) -> Result<Tensor>) {
    let variables: Vec<Tensor> = inputs.iter().map(|x| Var::from_tensor(x).unwrap().into_inner()).collect();
    let forward = || black_box(operation(inputs).unwrap());
    let y = operation(&variables).unwrap();
    let loss = (&y * y.detach()).unwrap().sum_all().unwrap();
    let backward = || black_box(loss.backward().unwrap());
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10);
    group.throughput(counted(&forward)).bench_function("forward", |bencher| bencher.iter(forward));
    group.throughput(counted(&backward)).bench_function("backward", |bencher| bencher.iter(backward));
    group.finish();
}

fn counted<R>(work: &dyn Fn() -> R) -> Throughput {
    let before = work::flops();
    work();
    Throughput::Elements((work::flops() - before).max(1))
}

fn convolutions(criterion: &mut Criterion) {
    for dtype in [DType::F32, DType::BF16] {
        for (channels, side) in [(320, 64), (640, 32), (1280, 16), (1280, 8)] {
            let weight = normal(&[channels, channels, 3, 3]).to_dtype(dtype).unwrap();
            let layer = FrozenConv2d::new(&weight, None, 1, 1).unwrap();
            let name = format!("conv2d 3x3 {channels} channels {side}x{side} {dtype:?}");
            both(criterion, &name, &[normal(&[1, channels, side, side])], &|x| layer.forward(&x[0]));
        }
    }
}

fn linears(criterion: &mut Criterion) {
    for dtype in [DType::F32, DType::BF16] {
        for (inputs, outputs, rows) in [(320, 320, 4096), (320, 2560, 4096), (1280, 1280, 64), (768, 320, 77)] {
            let layer = FrozenLinear::new(&normal(&[outputs, inputs]).to_dtype(dtype).unwrap(), None).unwrap();
            let name = format!("linear {inputs} to {outputs} {rows} rows {dtype:?}");
            both(criterion, &name, &[normal(&[rows, inputs])], &|x| layer.forward(&x[0]));
        }
    }
    let inputs = [normal(&[4096, 320]), normal(&[8, 320]), normal(&[320, 8])];
    both(criterion, "low-rank linear rank 8", &inputs, &|x| low_rank_linear(&x[0], &x[1], &x[2], 1.0));
}

fn attentions(criterion: &mut Criterion) {
    for (queries, keys, width) in [(4096, 4096, 320), (4096, 77, 320), (1024, 1024, 640), (256, 256, 1280)] {
        let inputs = [normal(&[1, queries, width]), normal(&[1, keys, width]), normal(&[1, keys, width])];
        let name = format!("attention {queries} to {keys} width {width}");
        both(criterion, &name, &inputs, &|x| attention(&x[0], &x[1], &x[2], 8, AttentionMask::None));
    }
}

fn norms(criterion: &mut Criterion) {
    let (weight, bias) = (normal(&[320]), normal(&[320]));
    let group = FrozenGroupNorm::new(&weight, &bias, 32, 1e-5).unwrap();
    both(criterion, "group norm and SiLU", &[normal(&[1, 320, 64, 64])], &|x| group.forward_silu(&x[0]));
    let layer = FrozenLayerNorm::new(&weight, &bias, 1e-5).unwrap();
    both(criterion, "layer norm", &[normal(&[4096, 320])], &|x| layer.forward(&x[0]));
    both(criterion, "geglu", &[normal(&[4096, 2560])], &|x| geglu(&x[0]));
}

fn on_one_thread(criterion: &mut Criterion) {
    rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(64 << 20).build_global().unwrap();
    for bench in [convolutions, linears, attentions, norms] {
        bench(criterion);
    }
}

criterion_group!(kernels, on_one_thread);
criterion_main!(kernels);
