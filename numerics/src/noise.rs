//! Reproducible random values: each is a function of (seed, stream, step, sample) and its position.
//!
//! The bits come from ChaCha12, whose 256-bit key is the four 64-bit values in order (little endian; the stream's name
//! is hashed by 64-bit FNV-1a). Box and Muller's transform computes normals in f64 with portable functions, so that the
//! bits are equal on every machine, at any number of threads and in any order of calls.

mod hashed;

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::Result;
use crate::error::During;
pub use hashed::hashed_uniforms;

/// The purpose of a draw: two streams of one seed share no values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stream(pub &'static str);

/// The source of all random values of a run: a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    seed: u64,
}

impl Noise {
    /// The source with this `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// A standard normal f32 tensor of `shape` on `device`, drawn on the host.
    ///
    /// Element `i` in row-major order is element `i` of [`Noise::normals`].
    pub fn normal(
        &self,
        stream: Stream,
        step: u64,
        sample: u64,
        shape: impl Into<candle_core::Shape>,
        device: &Device,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let values = self.normals(stream, step, sample, shape.elem_count());
        Tensor::from_vec(values, shape, device).during("placing noise on the device")
    }

    /// `count` standard normal values; a shorter draw is a prefix of a longer one.
    pub fn normals(&self, stream: Stream, step: u64, sample: u64, count: usize) -> Vec<f32> {
        let mut bits = self.generator(stream, step, sample);
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let (first, second) = box_muller(unit(&mut bits), unit(&mut bits));
            values.extend([first as f32, second as f32]);
        }
        values.truncate(count);
        values
    }

    /// `count` uniform values in `[0, 1)`, multiples of 2⁻⁵³; a shorter draw is a prefix of a longer one.
    pub fn uniforms(&self, stream: Stream, step: u64, sample: u64, count: usize) -> Vec<f64> {
        let mut bits = self.generator(stream, step, sample);
        (0..count).map(|_| unit(&mut bits)).collect()
    }

    fn generator(&self, stream: Stream, step: u64, sample: u64) -> ChaCha12Rng {
        let words = [self.seed, fnv1a(stream.0.bytes()), step, sample];
        let mut key = [0; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha12Rng::from_seed(key)
    }
}

/// The 53 high bits of the next word as a value in `[0, 1)`.
fn unit(bits: &mut ChaCha12Rng) -> f64 {
    (bits.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Two independent normals from two uniforms in `[0, 1)`.
fn box_muller(first: f64, second: f64) -> (f64, f64) {
    // 1 - first is in (0, 1], where the logarithm is finite.
    let radius = libm::sqrt(-2.0 * libm::log(1.0 - first));
    let (sine, cosine) = libm::sincos(std::f64::consts::TAU * second);
    (radius * cosine, radius * sine)
}

/// 64-bit FNV-1a (Fowler, Noll, Vo; offset basis and prime of draft-eastlake-fnv).
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let bytes = bytes.into_iter();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATENTS: Stream = Stream("latents");

    fn moments(values: &[f32]) -> [f64; 4] {
        let n = values.len() as f64;
        std::array::from_fn(|k| values.iter().map(|v| f64::from(*v).powi(k as i32 + 1)).sum::<f64>() / n)
    }

    #[test]
    fn fnv1a_gives_its_published_values() {
        assert_eq!(fnv1a(*b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(*b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(*b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn normals_have_the_moments_of_the_normal_distribution() {
        let [mean, second, third, fourth] = moments(&Noise::new(7).normals(LATENTS, 3, 1, 200_000));
        // Standard errors at this count: 0.0022, 0.0032, 0.0087, 0.022; each bound is five standard errors.
        assert!(mean.abs() < 0.011, "mean {mean}");
        assert!((second - 1.0).abs() < 0.016, "second moment {second}");
        assert!(third.abs() < 0.044, "third moment {third}");
        assert!((fourth - 3.0).abs() < 0.11, "fourth moment {fourth}");
    }

    #[test]
    fn uniforms_fill_the_unit_interval_evenly() {
        let values = Noise::new(11).uniforms(Stream("timesteps"), 0, 0, 100_000);
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
        for decile in 0..10 {
            let low = f64::from(decile) / 10.0;
            let count = values.iter().filter(|v| (low..low + 0.1).contains(*v)).count();
            assert!(count.abs_diff(10_000) < 500, "decile {decile} holds {count}");
        }
    }

    #[test]
    fn seed_stream_step_and_sample_each_give_independent_numbers() {
        let reference = Noise::new(1).normals(LATENTS, 2, 3, 20_000);
        let others = [
            Noise::new(2).normals(LATENTS, 2, 3, 20_000),
            Noise::new(1).normals(Stream("dropout"), 2, 3, 20_000),
            Noise::new(1).normals(LATENTS, 3, 3, 20_000),
            Noise::new(1).normals(LATENTS, 2, 4, 20_000),
            Noise::new(1).normals(LATENTS, 3, 2, 20_000),
        ];
        for other in others {
            let products = reference.iter().zip(&other).map(|(a, b)| f64::from(a * b));
            let correlation = products.sum::<f64>() / 20_000.0;
            assert!(correlation.abs() < 0.036, "correlation {correlation}");
        }
    }

    #[test]
    fn a_tensor_holds_the_same_bits_in_any_shape() {
        let noise = Noise::new(5);
        let flat = noise.normals(LATENTS, 9, 0, 24);
        for shape in [vec![24], vec![2, 12], vec![2, 3, 4]] {
            let tensor = noise.normal(LATENTS, 9, 0, shape, &Device::Cpu).unwrap();
            assert_eq!(tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(), flat);
        }
        assert_eq!(noise.normals(LATENTS, 9, 0, 7), flat[..7]);
        assert_eq!(noise.uniforms(LATENTS, 9, 0, 3), noise.uniforms(LATENTS, 9, 0, 8)[..3]);
    }

    #[test]
    fn the_bits_never_change_between_releases() {
        let values = Noise::new(42).normals(Stream("latents"), 0, 0, 4);
        assert_eq!(values.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), FIRST_BITS);
    }

    /// The first bits, computed by an implementation of ChaCha12 in Python.
    const FIRST_BITS: [u32; 4] = [3_207_016_504, 3_187_045_294, 3_193_368_451, 1_072_715_859];
}
