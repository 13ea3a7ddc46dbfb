//! What every fuzz target does: one target of `catelier-hostile`, with its mutations beside libFuzzer's own.

use std::sync::OnceLock;

use catelier_hostile::{Target, mutate};
use catelier_testkit::thread_memory::ThreadAllocator;

#[global_allocator]
static ALLOCATOR: ThreadAllocator = ThreadAllocator;

/// The target's seeds, for mutations that borrow from them.
static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

/// Changes `data[..size]` in place as the readers' formats suggest; the new size. `None` leaves it to libFuzzer.
pub fn mutated(target: &Target, data: &mut [u8], size: usize, seed: u32) -> Option<usize> {
    let mut rng = fastrand::Rng::with_seed(seed.into());
    if rng.bool() {
        return None;
    }
    let seeds = SEEDS.get_or_init(|| target.seeds());
    let mut input = if size == 0 { seeds[rng.usize(..seeds.len())].clone() } else { data[..size].to_vec() };
    mutate::mutate(&mut rng, &mut input, seeds);
    input.truncate(data.len());
    data[..input.len()].copy_from_slice(&input);
    Some(input.len())
}

/// Declares the fuzz target of this name.
#[macro_export]
macro_rules! fuzz {
    ($name:literal) => {
        libfuzzer_sys::fuzz_target!(|input: &[u8]| {
            catelier_hostile::Target::named($name).check(input);
        });
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            let target = catelier_hostile::Target::named($name);
            let _ = max_size;
            $crate::mutated(target, data, size, seed)
                .unwrap_or_else(|| libfuzzer_sys::fuzzer_mutate(data, size, max_size))
        });
    };
}
