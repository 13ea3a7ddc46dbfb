//! Mutations that turn valid files into nearly valid ones.

mod bytes;
mod json;
mod tensors;
mod text;

use fastrand::Rng;

/// Longest input; files that need to be larger to do harm are not what these tests are about.
const LONGEST: usize = 1 << 20;

/// Numbers at which programs go wrong.
pub(crate) const BOUNDARIES: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "-1",
    "7",
    "8",
    "9",
    "64",
    "127",
    "128",
    "255",
    "256",
    "1000",
    "4096",
    "20000",
    "65535",
    "65536",
    "1000000",
    "100000000",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "0.5",
    "-0.0",
    "1e-300",
    "3e38",
    "1e39",
    "1e308",
    "1e999",
    "-1e308",
];

/// Mutated input number `index` of the run with this `seed`.
#[must_use]
pub fn input(seeds: &[Vec<u8>], seed: u64, index: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index);
    let mut input = seeds[rng.usize(..seeds.len())].clone();
    for _ in 0..1 + geometric(&mut rng) {
        mutate(&mut rng, &mut input, seeds);
    }
    input
}

/// One mutation of `input`; `seeds` lend their parts.
pub fn mutate(rng: &mut Rng, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let structured = match rng.u8(..8) {
        0 => false,
        1 | 2 => text::mutate(rng, input),
        _ => tensors::mutate(rng, input) || json::mutate(rng, input) || text::mutate(rng, input),
    };
    if !structured {
        bytes::mutate(rng, input, seeds);
    }
    input.truncate(LONGEST);
}

/// 0, 1, 2 …, each half as likely as the one before; a few mutations leave more of a file valid than many.
fn geometric(rng: &mut Rng) -> u32 {
    rng.u16(..).trailing_zeros().min(6)
}

fn boundary(rng: &mut Rng) -> &'static str {
    BOUNDARIES[rng.usize(..BOUNDARIES.len())]
}
