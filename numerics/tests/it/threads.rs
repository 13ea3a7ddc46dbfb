//! The same bits at any number of threads.

use candle_core::{DType, Result, Tensor};
use catelier_numerics::ops::{
    AttentionMask, FrozenConv2d, FrozenGroupNorm, FrozenLayerNorm, FrozenLinear, attention, attention_rounded,
    feed_forward,
};

use crate::material::{every_operation, normal, run, values};

fn at_each_thread_count(what: &str, compute: impl Fn() -> Vec<Tensor> + Sync) {
    let bits = |threads: usize| -> Vec<Vec<u64>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let results = pool.install(&compute);
        results.iter().map(|result| values(result).iter().map(|value| value.to_bits()).collect()).collect()
    };
    let alone = bits(1);
    for threads in [2, 3] {
        assert!(alone == bits(threads), "{what} on {threads} threads");
    }
}

#[test]
fn small_operations_give_the_same_bits() {
    let names: Vec<_> = every_operation(DType::F32, 2).iter().map(|case| case.name).collect();
    for (index, name) in names.iter().enumerate() {
        at_each_thread_count(name, || {
            let case = &every_operation(DType::F32, 19)[index];
            run(&case.inputs, &case.f).unwrap()
        });
    }
}

#[test]
fn operations_as_large_as_in_a_model_give_the_same_bits() {
    for dtype in [DType::F32, DType::BF16] {
        let weight = |sample, shape: &[usize]| normal(sample, shape, dtype);
        let image = [normal(0, &[2, 64, 32, 32], DType::F32)];
        for (kernel, stride) in [(3, 1), (3, 2), (1, 1)] {
            let conv = FrozenConv2d::new(&weight(1, &[96, 64, kernel, kernel]), None, stride, kernel / 2).unwrap();
            let what = format!("conv2d of {kernel}, stride {stride}, {dtype:?}");
            at_each_thread_count(&what, || run(&image, &|t| conv.forward(&t[0])).unwrap());
        }
        let tokens = [normal(4, &[1, 700, 64], DType::F32)];
        let linear = FrozenLinear::new(&weight(7, &[256, 64]), None).unwrap();
        at_each_thread_count(&format!("linear {dtype:?}"), || run(&tokens, &|t| linear.forward(&t[0])).unwrap());
        let norm = FrozenLayerNorm::new(&weight(8, &[64]), &weight(9, &[64]), 1e-5).unwrap();
        let widen = FrozenLinear::new(&weight(10, &[512, 64]), Some(&weight(11, &[512]))).unwrap();
        let narrow = FrozenLinear::new(&weight(12, &[64, 256]), Some(&weight(13, &[64]))).unwrap();
        at_each_thread_count(&format!("feed-forward {dtype:?}"), || {
            run(&tokens, &|t| feed_forward(&t[0], &norm, &widen, &narrow)).unwrap()
        });
    }
}

#[test]
fn norms_and_attention_as_large_as_in_a_model_give_the_same_bits() {
    let image = [normal(0, &[2, 64, 32, 32], DType::F32)];
    let norm = FrozenGroupNorm::new(&normal(2, &[64], DType::F32), &normal(3, &[64], DType::F32), 32, 1e-5).unwrap();
    at_each_thread_count("group norm", || run(&image, &|t| norm.forward_silu(&t[0])).unwrap());
    for keys in [77, 700] {
        let [q, k, v] =
            [(4, 700), (5, keys), (6, keys)].map(|(sample, count)| normal(sample, &[1, count, 64], DType::F32));
        let tokens = [q, k, v];
        for (name, attend) in [("exact", attention as Attention), ("rounded", attention_rounded)] {
            at_each_thread_count(&format!("{name} attention to {keys}"), || {
                run(&tokens, &|t| attend(&t[0], &t[1], &t[2], 4, AttentionMask::None)).unwrap()
            });
        }
    }
}

type Attention = fn(&Tensor, &Tensor, &Tensor, usize, AttentionMask) -> Result<Tensor>;
