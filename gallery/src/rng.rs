//! Seeded chance: every choice in a picture is a function of its seed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A stream of choices, keyed by a seed, the name of what is being chosen, and an index.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// The stream called `name` (its first 16 bytes count) of `seed`.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        Self::at(seed, name, 0)
    }

    /// The stream of the `index`th thing called `name` under `seed`.
    pub(crate) fn at(seed: u64, name: &str, index: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        for (slot, byte) in key[8..24].iter_mut().zip(name.bytes()) {
            *slot = byte;
        }
        key[24..].copy_from_slice(&index.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// A whole number of 64 random bits, for seeding something else.
    pub(crate) fn seed(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..1`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// A number in `low..high`.
    pub(crate) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// A number in `-reach..reach`.
    pub(crate) fn jitter(&mut self, reach: f32) -> f32 {
        self.between(-reach, reach)
    }

    /// A place in a list of `count` (at least one) things.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((self.unit() * count as f32) as usize).min(count.saturating_sub(1))
    }

    /// Whether something happens that has this `probability`.
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
