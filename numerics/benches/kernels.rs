//! Speed of the kernels at the shapes of Stable Diffusion 1.5, on one thread: `cargo bench -p catelier-numerics`.
//!
//! Throughput is counted floating-point operations per second, to compare with the CPU's peak. A kernel without
//! products, such as upsampling, counts as one element.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may panic")]

mod cases;

use std::hint::black_box;
use std::time::Duration;

use candle_core::DType;
use catelier_numerics::{ops, work};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

use cases::Case;

/// Channels and side of each level of the UNet.
const LEVELS: [(usize, usize); 4] = [(320, 64), (640, 32), (1280, 16), (1280, 8)];

/// Times the forward pass of a kernel, and its backward pass alone.
fn both(criterion: &mut Criterion, name: &str, case: &Case) {
    let loss = case.loss();
    let forward = || black_box(case.forward());
    let backward = || black_box(loss.backward().unwrap());
    let mut group = criterion.benchmark_group(format!("{name} {}", case.shape));
    // Slow kernels take a tenth of a second: samples of growing length would take most of the time.
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(counted(&forward)).bench_function("forward", |bencher| bencher.iter(forward));
    group.throughput(counted(&backward)).bench_function("backward", |bencher| bencher.iter(backward));
    group.finish();
}

fn counted<R>(work: &dyn Fn() -> R) -> Throughput {
    let before = work::flops();
    work();
    Throughput::Elements((work::flops() - before).max(1))
}

/// Times a kernel with f32 weights and with bf16 weights.
fn weighted(criterion: &mut Criterion, name: &str, case: impl Fn(DType) -> Case) {
    for dtype in [DType::F32, DType::BF16] {
        both(criterion, &format!("{name} {}", dtype.as_str()), &case(dtype));
    }
}

fn convolutions(criterion: &mut Criterion) {
    for (channels, side) in LEVELS {
        weighted(criterion, "conv-3x3", |dtype| cases::convolution(dtype, (channels, channels), (3, 1), side));
    }
    weighted(criterion, "conv-1x1", |dtype| cases::convolution(dtype, (640, 320), (1, 1), 64));
    weighted(criterion, "conv-stride-2", |dtype| cases::convolution(dtype, (320, 320), (3, 2), 64));
    weighted(criterion, "residual-conv", |dtype| cases::residual_convolution(dtype, 320, 64));
    weighted(criterion, "adapted-conv", |dtype| cases::adapted_convolution(dtype, 320, 64));
    both(criterion, "upsample", &cases::upsample(512, 64));
}

fn linears(criterion: &mut Criterion) {
    for (inputs, outputs, rows) in [(320, 320, 4096), (320, 2560, 4096), (1280, 1280, 64)] {
        weighted(criterion, "linear", |dtype| cases::linear(dtype, (inputs, outputs), rows));
    }
    weighted(criterion, "linear-without-bias", |dtype| cases::linear_without_bias(dtype, (768, 320), 77));
    weighted(criterion, "adapted-linear", |dtype| cases::adapted_linear(dtype, 320, 4096));
    weighted(criterion, "adapted-linear-without-bias", |dtype| cases::adapted_linear_without_bias(dtype, 320, 4096));
    both(criterion, "low-rank-linear", &cases::low_rank_linear(320, 4096));
    weighted(criterion, "map-to-tokens", |dtype| cases::map_to_tokens(dtype, 320, 64));
    weighted(criterion, "tokens-to-map", |dtype| cases::tokens_to_map(dtype, 320, 64));
    for (width, side) in LEVELS {
        weighted(criterion, "feed-forward", |dtype| cases::feed_forward(dtype, width, side * side));
    }
}

fn attentions(criterion: &mut Criterion) {
    for (queries, keys, width) in [(4096, 4096, 320), (4096, 77, 320), (1024, 1024, 640), (256, 256, 1280)] {
        both(criterion, "attention", &cases::attention(queries, keys, width));
        both(criterion, "attention-rounded", &cases::attention_rounded(queries, keys, width));
    }
}

fn without_products(criterion: &mut Criterion) {
    both(criterion, "group-norm-silu", &cases::group_norm_silu(320, 64));
    both(criterion, "layer-norm", &cases::layer_normalisation(320, 4096));
    both(criterion, "geglu", &cases::of_rows(2560, 4096, ops::geglu));
    both(criterion, "silu", &cases::of_rows(320, 4096, ops::silu));
    both(criterion, "gelu", &cases::of_rows(1280, 4096, ops::gelu));
    both(criterion, "softmax", &cases::of_rows(77, 4096, ops::softmax));
}

fn on_one_thread(criterion: &mut Criterion) {
    rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(64 << 20).build_global().unwrap();
    for bench in [convolutions, linears, attentions, without_products] {
        bench(criterion);
    }
}

fn briefly() -> Criterion {
    let criterion = Criterion::default().sample_size(10);
    criterion.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2))
}

criterion_group! { name = kernels; config = briefly(); targets = on_one_thread }
criterion_main!(kernels);
