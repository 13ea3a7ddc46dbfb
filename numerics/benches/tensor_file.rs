//! The cost of a checksum: `cargo bench -p catelier-numerics --bench tensor_file`.
//!
//! The file has the size of the state of a training run on Stable Diffusion 1.5: an adapter of rank 8 on the attentions,
//! and both moments of AdamW.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may panic")]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use catelier_numerics::tensor_file::{TensorFile, write, write_checked};
use criterion::{Criterion, criterion_group, criterion_main};

/// Numbers in the factors of 128 modules.
const PARAMETERS: usize = 1_594_368;

fn state() -> BTreeMap<String, Tensor> {
    let values = Tensor::zeros(PARAMETERS / 256, DType::F32, &Device::Cpu).unwrap();
    let parts = ["parameter", "optimizer/first_moment", "optimizer/second_moment"];
    let names = parts.iter().flat_map(|part| (0..256).map(move |number| format!("{part}/{number}")));
    names.map(|name| (name, values.clone())).collect()
}

fn checksums(criterion: &mut Criterion) {
    let (folder, state, metadata) = (tempfile::tempdir().unwrap(), state(), BTreeMap::new());
    let path = folder.path().join("step-000050.safetensors");
    criterion.bench_function("write", |bencher| bencher.iter(|| write(&path, &state, &metadata).unwrap()));
    criterion.bench_function("write_checked", |bencher| {
        bencher.iter(|| write_checked(&path, &state, &metadata).unwrap());
    });
    criterion.bench_function("open", |bencher| bencher.iter(|| TensorFile::open(&path).unwrap()));
    criterion.bench_function("open and check", |bencher| {
        bencher.iter(|| TensorFile::open(&path).unwrap().checksum().unwrap());
    });
}

criterion_group! { name = tensor_file; config = Criterion::default().sample_size(20); targets = checksums }
criterion_main!(tensor_file);
