//! Runs one kernel a few times and nothing else, for programs that count instructions.
//!
//! ```text
//! one_kernel                            lists the kernels, a name and a shape on each line
//! one_kernel NAME forward|backward N    runs it N times, on one thread
//! ```
#![allow(clippy::unwrap_used, missing_docs, reason = "a measurement may panic")]

#[path = "../benches/cases/mod.rs"]
mod cases;

use std::hint::black_box;

use candle_core::DType::F32;
use catelier_numerics::ops;

use cases::Case;

type Prepare = fn() -> Case;

/// Names, and kernels at the proportions of Stable Diffusion, small enough for a simulated CPU. Such a CPU
/// has no products of bf16, so all weights are f32; `attention-rounded` is there to see that it costs no more.
const KERNELS: &[(&str, Prepare)] = &[
    ("conv-3x3", || cases::convolution(F32, (64, 64), (3, 1), 16)),
    ("conv-1x1", || cases::convolution(F32, (128, 64), (1, 1), 16)),
    ("conv-stride-2", || cases::convolution(F32, (64, 64), (3, 2), 16)),
    ("residual-conv", || cases::residual_convolution(F32, 64, 16)),
    ("adapted-conv", || cases::adapted_convolution(F32, 64, 16)),
    ("upsample", || cases::upsample(64, 16)),
    ("linear", || cases::linear(F32, (320, 320), 64)),
    ("linear-without-bias", || cases::linear_without_bias(F32, (320, 320), 64)),
    ("adapted-linear", || cases::adapted_linear(F32, 320, 64)),
    ("adapted-linear-without-bias", || cases::adapted_linear_without_bias(F32, 320, 64)),
    ("low-rank-linear", || cases::low_rank_linear(320, 64)),
    ("map-to-tokens", || cases::map_to_tokens(F32, 64, 16)),
    ("tokens-to-map", || cases::tokens_to_map(F32, 64, 16)),
    ("feed-forward", || cases::feed_forward(F32, 320, 64)),
    ("attention", || cases::attention(256, 256, 320)),
    ("attention-rounded", || cases::attention_rounded(256, 256, 320)),
    ("cross-attention", || cases::attention(256, 77, 320)),
    ("group-norm-silu", || cases::group_norm_silu(320, 16)),
    ("layer-norm", || cases::layer_normalisation(320, 256)),
    ("geglu", || cases::of_rows(2560, 256, ops::geglu)),
    ("silu", || cases::of_rows(320, 256, ops::silu)),
    ("gelu", || cases::of_rows(1280, 256, ops::gelu)),
    ("softmax", || cases::of_rows(77, 256, ops::softmax)),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => list(),
        [name, pass, times] => {
            let (_, prepare) = KERNELS.iter().find(|(kernel, _)| *kernel == name).expect("a kernel of the list");
            run(*prepare, pass, times.parse().expect("a number of times"));
        }
        _ => panic!("expected no arguments, or NAME forward|backward N"),
    }
}

#[expect(clippy::print_stdout, reason = "for the program that runs this one")]
fn list() {
    for (name, prepare) in KERNELS {
        println!("{name}\t{}", prepare().shape);
    }
}

/// All of it on the one thread of a pool: no other thread waits for it and spins.
fn run(prepare: Prepare, pass: &str, times: usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let case = prepare();
        match pass {
            "forward" => (0..times).for_each(|_| drop(black_box(case.forward()))),
            "backward" => {
                let loss = case.loss();
                (0..times).for_each(|_| drop(black_box(loss.backward().unwrap())));
            }
            other => panic!("expected forward or backward, found {other}"),
        }
    });
}
