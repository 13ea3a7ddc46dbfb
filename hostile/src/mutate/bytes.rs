//! Mutations of bytes, whatever they mean.

use fastrand::Rng;

pub(super) fn mutate(rng: &mut Rng, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    if input.is_empty() {
        input.push(rng.u8(..));
        return;
    }
    let at = rng.usize(..input.len());
    let end = at + rng.usize(..=(input.len() - at).min(64));
    match rng.u8(..9) {
        0 | 1 => input[at] ^= 1 << rng.u8(..8),
        2 => input[at] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'{'][rng.usize(..8)],
        3 => input.truncate(at),
        4 => drop(input.drain(at..end)),
        5 => {
            let part = input[at..end].repeat(1 + rng.usize(..4));
            input.splice(at..at, part);
        }
        6 => input.insert(at, rng.u8(..)),
        7 => input[at..end].fill(rng.u8(..)),
        _ => {
            let other = &seeds[rng.usize(..seeds.len())];
            splice(rng, input, other);
        }
    }
}

/// The beginning of one input and the end of another.
fn splice(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8]) {
    input.truncate(rng.usize(..=input.len()));
    input.extend_from_slice(&other[rng.usize(..=other.len())..]);
}
