//! Seeded random numbers: every choice in an image is a function of its seed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A random stream (ChaCha8), determined by a seed, the name of a choice and an index.
pub(crate) struct Rng(ChaCha8Rng);

impl Rng {
    /// The stream of `seed` for the choice called `name`, at index 0.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        Self::at(seed, name, 0)
    }

    /// The stream of `seed` for the choice called `name` (its first 16 bytes count) at `index`.
    pub(crate) fn at(seed: u64, name: &str, index: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        for (slot, byte) in key[8..24].iter_mut().zip(name.bytes()) {
            *slot = byte;
        }
        key[24..].copy_from_slice(&index.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// 64 random bits, as the seed of another stream.
    pub(crate) fn seed(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A uniform value in `0..1`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// A uniform value in `low..high`.
    pub(crate) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// A uniform value in `-reach..reach`.
    pub(crate) fn jitter(&mut self, reach: f32) -> f32 {
        self.between(-reach, reach)
    }

    /// An index below `count`, which is at least 1.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((self.unit() * count as f32) as usize).min(count.saturating_sub(1))
    }

    /// True with this `probability`.
    pub(crate) fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    /// Puts `list` into a random order (Fisher-Yates).
    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            let other = self.below(last + 1);
            list.swap(last, other);
        }
    }
}
