//! Random values from a fast hash, for initialising whole models: billions of values do not need the quality of ChaCha
//! and would take its time.

use rayon::prelude::*;

/// Values that one task fills; even, because a hash gives two values.
const CHUNK: usize = 1 << 16;

/// `count` uniform values in `[-bound, bound)`, as a function of `key` and position, at any number of threads; a
/// shorter draw is a prefix of a longer one.
///
/// **Source** the output function of SplitMix64 (Steele, Lea and Flood, 2014), applied to a counter.
pub fn hashed_uniforms(key: u64, bound: f32, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let first = (chunk * CHUNK / 2) as u64;
        for (counter, pair) in (first..).zip(values.chunks_mut(2)) {
            let bits = hash(key, counter);
            for (value, half) in pair.iter_mut().zip([bits >> 32, bits & 0xffff_ffff]) {
                *value = centred(half) * bound;
            }
        }
    });
    values
}

/// SplitMix64's word number `counter` from the state `key`.
#[inline(always)]
fn hash(key: u64, counter: u64) -> u64 {
    let state = key.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The 24 high bits of a 32-bit word as a value in `[-1, 1)`; 24 bits fit into an f32 exactly.
#[inline(always)]
fn centred(word: u64) -> f32 {
    const HALF: i32 = 1 << 23;
    ((word >> 8) as i32 - HALF) as f32 / HALF as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_are_those_of_splitmix64() {
        // The reference program's output for seed 1234567.
        let found = [0, 1, 2].map(|counter| hash(1_234_567, counter));
        assert_eq!(found, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn numbers_do_not_depend_on_threads_or_on_how_many_are_asked_for() {
        let long = hashed_uniforms(7, 1.0, 3 * CHUNK + 5);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let short = pool.install(|| hashed_uniforms(7, 1.0, CHUNK + 3));
        assert_eq!(short, long[..CHUNK + 3]);
        assert_ne!(hashed_uniforms(8, 1.0, 9), long[..9]);
    }

    #[test]
    fn numbers_fill_the_interval_evenly() {
        let values = hashed_uniforms(1, 0.5, 100_000);
        assert!(values.iter().all(|value| (-0.5..0.5).contains(value)));
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / 1e5;
        let square = values.iter().map(|value| f64::from(value * value)).sum::<f64>() / 1e5;
        // Standard errors: mean 9e-4, mean square 2.4e-4.
        assert!(mean.abs() < 4e-3 && (square - 1.0 / 12.0).abs() < 1e-3, "mean {mean}, mean square {square}");
    }
}
