//! The order of the images in a run.

use catelier_numerics::noise::{Noise, Stream};

use super::DataError;

/// An endless order of images, epoch after epoch. Each epoch is a shuffle in which every image appears as often as it
/// repeats. A batch is a function of the seed and the step, so a resumed run needs no saved order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    slots: Vec<usize>,
    stream: Stream,
    noise: Noise,
}

impl Order {
    /// An order of images with these `repeats`, numbered from 0. Orders with one seed and different `stream`s are
    /// independent.
    ///
    /// # Errors
    /// [`DataError::NothingToShow`] if all repeats are 0.
    pub fn new(repeats: impl IntoIterator<Item = usize>, stream: Stream, seed: u64) -> Result<Self, DataError> {
        let numbered = repeats.into_iter().enumerate();
        let slots: Vec<usize> = numbered.flat_map(|(image, times)| std::iter::repeat_n(image, times)).collect();
        match slots.is_empty() {
            true => Err(DataError::NothingToShow),
            false => Ok(Self { slots, stream, noise: Noise::new(seed) }),
        }
    }

    /// Number of images in an epoch, including repeats.
    pub fn epoch_length(&self) -> usize {
        self.slots.len()
    }

    /// The images of one epoch in their order (Fisher and Yates' shuffle).
    pub fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut images = self.slots.clone();
        let draws = self.noise.uniforms(self.stream, epoch, 0, images.len());
        for last in (1..images.len()).rev() {
            let other = (draws[last] * (last + 1) as f64) as usize;
            images.swap(last, other);
        }
        images
    }

    /// The `size` images of batch `step`, counted from 0. A batch may cross the end of an epoch.
    pub fn batch(&self, step: u64, size: usize) -> Vec<usize> {
        let length = self.slots.len() as u64;
        let first = step * size as u64;
        let mut epoch = (first / length, self.epoch(first / length));
        let mut images = Vec::with_capacity(size);
        for position in first..first + size as u64 {
            if position / length != epoch.0 {
                epoch = (position / length, self.epoch(position / length));
            }
            images.push(epoch.1[(position % length) as usize]);
        }
        images
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: Stream = Stream("test/order");

    fn order(repeats: &[usize], seed: u64) -> Order {
        Order::new(repeats.iter().copied(), STREAM, seed).unwrap()
    }

    #[test]
    fn nothing_to_show_is_an_error() {
        for repeats in [vec![], vec![0, 0]] {
            let error = Order::new(repeats, STREAM, 1).unwrap_err();
            assert_eq!(error.to_string(), "no image is shown even once in an epoch");
        }
    }

    #[test]
    fn epochs_seeds_and_streams_differ() {
        let repeats = [1; 20];
        let first = order(&repeats, 1);
        assert_ne!(first.epoch(0), first.epoch(1));
        assert_ne!(first.epoch(0), order(&repeats, 2).epoch(0));
        assert_ne!(first.epoch(0), Order::new(repeats, Stream("other"), 1).unwrap().epoch(0));
    }

    #[test]
    fn every_image_comes_first_about_equally_often() {
        let order = order(&[1; 4], 3);
        let mut firsts = [0; 4];
        for epoch in 0..4000 {
            firsts[order.epoch(epoch)[0]] += 1;
        }
        // The bound is five standard deviations; one is 27.
        assert!(firsts.iter().all(|count: &i32| (count - 1000).abs() < 137), "{firsts:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_image_appears_as_often_as_it_repeats(
            repeats in prop::collection::vec(0..5usize, 1..12), seed: u64, epoch in 0..1000u64,
        ) {
            prop_assume!(repeats.iter().any(|times| *times > 0));
            let images = order(&repeats, seed).epoch(epoch);
            for (image, times) in repeats.iter().enumerate() {
                prop_assert_eq!(images.iter().filter(|shown| **shown == image).count(), *times);
            }
        }

        #[test]
        fn batches_are_the_epochs_end_to_end_and_a_function_of_the_step(
            repeats in prop::collection::vec(1..4usize, 1..6), seed: u64, size in 1..9usize,
        ) {
            let steps = 10u64;
            let whole = order(&repeats, seed);
            let epochs = (steps as usize * size).div_ceil(whole.epoch_length()) as u64;
            let expected: Vec<usize> = (0..epochs).flat_map(|epoch| whole.epoch(epoch)).collect();
            // Steps in reverse, from a new order each time: a batch depends on no earlier one.
            for step in (0..steps).rev() {
                let start = step as usize * size;
                prop_assert_eq!(order(&repeats, seed).batch(step, size), &expected[start..start + size]);
            }
        }
    }
}
