//! Random values for tests.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// `count` standard normal values that depend only on `seed`: Box and Muller's transform of ChaCha12's uniform values.
pub(crate) fn normals(seed: u64, count: usize) -> Vec<f32> {
    let mut bits = ChaCha12Rng::seed_from_u64(seed);
    // In (0, 1], where the logarithm is finite.
    let mut unit = || ((bits.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let pair = |_| {
        let (radius, angle) = ((-2.0 * libm::log(unit())).sqrt(), std::f64::consts::TAU * unit());
        [(radius * libm::cos(angle)) as f32, (radius * libm::sin(angle)) as f32]
    };
    let mut values: Vec<f32> = (0..count.div_ceil(2)).flat_map(pair).collect();
    values.truncate(count);
    values
}
