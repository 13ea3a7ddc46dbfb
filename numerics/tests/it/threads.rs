//! The same bits at any number of threads.

use candle_core::{DType, Tensor};
use catelier_numerics::ops::{AttentionMask, FrozenConv2d, FrozenGroupNorm, FrozenLinear, attention};

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
    let image = normal(0, &[2, 64, 32, 32], DType::F32);
    let conv = FrozenConv2d::new(&normal(1, &[96, 64, 3, 3], DType::F32), None, 1, 1).unwrap();
    at_each_thread_count("conv2d", || run(std::slice::from_ref(&image), &|t| conv.forward(&t[0])).unwrap());
    let norm = FrozenGroupNorm::new(&normal(2, &[64], DType::F32), &normal(3, &[64], DType::F32), 32, 1e-5).unwrap();
    at_each_thread_count("group norm", || run(std::slice::from_ref(&image), &|t| norm.forward_silu(&t[0])).unwrap());

    let tokens = [
        normal(4, &[1, 300, 64], DType::F32),
        normal(5, &[1, 77, 64], DType::F32),
        normal(6, &[1, 77, 64], DType::F32),
    ];
    at_each_thread_count("attention", || {
        run(&tokens, &|t| attention(&t[0], &t[1], &t[2], 4, AttentionMask::None)).unwrap()
    });
    let linear = FrozenLinear::new(&normal(7, &[256, 64], DType::F32), None).unwrap();
    at_each_thread_count("linear", || run(&tokens[..1], &|t| linear.forward(&t[0])).unwrap());
}
