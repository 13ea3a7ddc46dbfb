//! Compares the autoencoder's estimate of its memory with the memory that it takes. The counter belongs to the whole
//! process, so this file is a process with one test function.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use catelier_bench::Shape;
use catelier_numerics::cpu::use_portable_kernels;
use catelier_numerics::noise::{Noise, Stream};
use catelier_pipelines::models::files::ModelFiles;
use catelier_pipelines::models::{Tiling, Vae};
use catelier_testkit::allocations::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn the_autoencoder_takes_the_memory_it_says_and_less_in_tiles() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let tiny = ModelFiles::folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/tiny-sd1"));
        for portable in [true, false] {
            use_portable_kernels(portable);
            let vae = Vae::load(&tiny, DType::F32, &Device::Cpu).unwrap();
            let whole = check(&vae, (128, 192));
            let vae = vae.with_tiling(Tiling { side: 4, ..Tiling::always() }).unwrap();
            let tiled = peaks(&vae, (128, 192));
            assert!(3 * tiled.0 < whole.0 && 3 * tiled.1 < whole.1, "{tiled:?} in tiles, {whole:?} whole");
            check(&Vae::load(&Shape::Sd15.files(1), DType::F32, &Device::Cpu).unwrap(), (32, 40));
        }
    });
}

/// Compares estimate and count for an image of `size` pixels (height, width); returns the counts.
fn check(vae: &Vae, size: (usize, usize)) -> (u64, u64) {
    let counted = peaks(vae, size);
    for (what, counted, said) in
        [("decoding", counted.0, vae.decoding_bytes(size)), ("encoding", counted.1, vae.encoding_bytes(size))]
    {
        let ratio = counted as f64 / said as f64;
        assert!((0.85..1.15).contains(&ratio), "{what} {size:?}: counted {counted} bytes, said {said} ({ratio:.3})");
    }
    counted
}

/// Peak memory of decoding and of encoding.
fn peaks(vae: &Vae, (height, width): (usize, usize)) -> (u64, u64) {
    let (image, latents) = (normal((1, 3, height, width)), normal((1, 4, height / 8, width / 8)));
    (peak(|| vae.decode(&latents).unwrap()), peak(|| vae.encode(&image).unwrap()))
}

fn normal(shape: (usize, usize, usize, usize)) -> Tensor {
    Noise::new(1).normal(Stream("memory"), 0, 0, shape, &Device::Cpu).unwrap()
}

/// Peak memory of the second run; the first one fills buffers that are kept.
fn peak<R>(work: impl Fn() -> R) -> u64 {
    work();
    ALLOCATOR.measure(work).1.peak_bytes
}
