//! How much of the training images is in what was drawn, beside held-out images of the same captions.

use serde::Serialize;

use super::separation::Separation;
use crate::error::Result;

/// Features of an artist's training images and of held-out images with the same captions, around the mean of the held-out
/// ones: what all images by the artist have in common counts for nothing.
#[derive(Debug, Clone)]
pub(super) struct Compared {
    /// One for each training image.
    members: Vec<Vec<f32>>,
    /// For each training image, those of the held-out images with its caption; two or more.
    held_out: Vec<Vec<Vec<f32>>>,
    centre: Vec<f32>,
}

/// For each training image, and each held-out image with its caption, the largest similarity to a drawn image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Nearness {
    pub(super) members: Vec<Nearest>,
    pub(super) held_out: Vec<Vec<Nearest>>,
}

/// The drawn image that is nearest to another one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Nearest {
    /// Correlation of the centred features, -1 to 1.
    pub(super) similarity: f64,
    /// Place of the drawn image.
    pub(super) drawn: usize,
}

/// How much of the training images is in what was drawn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Copying {
    /// How well nearness to a drawn image tells training images from held-out ones: nearness beyond the mean of the held-out
    /// images with the same caption, so that a drawing of what the caption says is no copy.
    pub told: Separation,
    /// Mean similarity of the training images to their nearest drawn image, -1 to 1.
    pub training: f64,
    /// The same of the held-out images.
    pub held_out: f64,
}

impl Compared {
    /// Centres the features. There is at least one held-out image.
    pub(super) fn new(members: Vec<Vec<f32>>, held_out: Vec<Vec<Vec<f32>>>) -> Self {
        let centre = mean(held_out.iter().flatten());
        let centred = |features: Vec<Vec<f32>>| features.iter().map(|one| minus(one, &centre)).collect::<Vec<_>>();
        let held_out = held_out.into_iter().map(centred).collect();
        Self { members: centred(members), held_out, centre }
    }

    /// The nearest of `drawn`, features that are not centred yet, one or more.
    pub(super) fn nearness(&self, drawn: &[Vec<f32>]) -> Nearness {
        let drawn: Vec<Vec<f32>> = drawn.iter().map(|one| minus(one, &self.centre)).collect();
        let nearest = |image: &Vec<f32>| nearest(image, &drawn);
        Nearness {
            members: self.members.iter().map(nearest).collect(),
            held_out: self.held_out.iter().map(|images| images.iter().map(nearest).collect()).collect(),
        }
    }

    /// The held-out image with the caption of training image `member` that is nearest to a drawn one.
    pub(super) fn nearest_held_out(&self, member: usize, drawn: &[f32]) -> Nearest {
        nearest(&minus(drawn, &self.centre), &self.held_out[member])
    }
}

impl Nearness {
    /// The nearest of the images of all parts; places count through the parts in order, which have these numbers of images.
    pub(super) fn best(parts: &[(&Self, usize)]) -> Option<Self> {
        let (mut parts, mut before) = (parts.iter(), 0);
        let (first, count) = parts.next()?;
        let mut best = (*first).clone();
        before += count;
        for (part, count) in parts {
            best.improve(part, before);
            before += count;
        }
        Some(best)
    }

    fn improve(&mut self, other: &Self, before: usize) {
        let own = self.members.iter_mut().chain(self.held_out.iter_mut().flatten());
        let others = other.members.iter().chain(other.held_out.iter().flatten());
        for (own, other) in own.zip(others) {
            if other.similarity > own.similarity {
                *own = Nearest { drawn: before + other.drawn, ..*other };
            }
        }
    }

    /// Nearness beyond that of the held-out images with the same caption: of the training images, and of each held-out image
    /// beside the others.
    pub(super) fn excess(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut members, mut held_out) = (Vec::new(), Vec::new());
        for (member, images) in self.members.iter().zip(&self.held_out) {
            let (sum, count) = (images.iter().map(|image| image.similarity).sum::<f64>(), images.len() as f64);
            members.push(member.similarity - sum / count);
            let beside = |image: &Nearest| image.similarity - (sum - image.similarity) / (count - 1.0);
            held_out.extend(images.iter().map(beside));
        }
        (members, held_out)
    }
}

impl Copying {
    /// Over the training images of all artists together.
    pub(super) fn of(all: &[&Nearness], seed: u64) -> Result<Self> {
        let (mut members, mut held_out) = (Vec::new(), Vec::new());
        for (of_members, of_held_out) in all.iter().map(|nearness| nearness.excess()) {
            members.extend(of_members);
            held_out.extend(of_held_out);
        }
        let mean = |images: Vec<&Nearest>| {
            images.iter().map(|image| image.similarity).sum::<f64>() / images.len().max(1) as f64
        };
        Ok(Self {
            told: Separation::of(&members, &held_out, seed)?,
            training: mean(all.iter().flat_map(|nearness| &nearness.members).collect()),
            held_out: mean(all.iter().flat_map(|nearness| nearness.held_out.iter().flatten()).collect()),
        })
    }
}

/// The first of the most similar.
fn nearest(image: &[f32], others: &[Vec<f32>]) -> Nearest {
    let mut best = Nearest { similarity: f64::NEG_INFINITY, drawn: 0 };
    for (drawn, other) in others.iter().enumerate() {
        let similarity = cosine(image, other);
        if similarity > best.similarity {
            best = Nearest { similarity, drawn };
        }
    }
    best
}

/// 0 where one has no direction: it is the mean image, which resembles no image more than another.
fn cosine(left: &[f32], right: &[f32]) -> f64 {
    let (mut product, mut of_left, mut of_right) = (0.0, 0.0, 0.0);
    for (left, right) in left.iter().zip(right) {
        let (left, right) = (f64::from(*left), f64::from(*right));
        product += left * right;
        of_left += left * left;
        of_right += right * right;
    }
    let lengths = (of_left * of_right).sqrt();
    if lengths > 0.0 { product / lengths } else { 0.0 }
}

fn minus(feature: &[f32], centre: &[f32]) -> Vec<f32> {
    feature.iter().zip(centre).map(|(value, centre)| value - centre).collect()
}

fn mean<'f>(features: impl Iterator<Item = &'f Vec<f32>>) -> Vec<f32> {
    let (mut sum, mut count) = (Vec::<f64>::new(), 0.0);
    for feature in features {
        sum.resize(feature.len(), 0.0);
        sum.iter_mut().zip(feature).for_each(|(sum, value)| *sum += f64::from(*value));
        count += 1.0;
    }
    sum.into_iter().map(|sum| (sum / count) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use catelier_numerics::noise::{Noise, Stream};

    /// Images of ten captions around a common style: a training image and twelve held-out ones for each caption.
    struct World {
        noise: Noise,
    }

    impl World {
        fn feature(&self, caption: usize, image: u64) -> Vec<f32> {
            let own = self.noise.normals(Stream("image"), caption as u64, image, 30);
            let caption = self.noise.normals(Stream("caption"), caption as u64, 0, 30);
            own.iter().zip(caption).map(|(own, caption)| 5.0 + caption + own).collect()
        }

        fn members(&self) -> Vec<Vec<f32>> {
            (0..10).map(|caption| self.feature(caption, 0)).collect()
        }

        fn compared(&self) -> Compared {
            let held_out = |caption| (1..=12).map(|image| self.feature(caption, image)).collect();
            Compared::new(self.members(), (0..10).map(held_out).collect())
        }
    }

    #[test]
    fn a_generator_that_returns_the_training_images_is_found_out_wholly() {
        let world = World { noise: Noise::new(1) };
        let copying = Copying::of(&[&world.compared().nearness(&world.members())], 1).unwrap();
        assert_eq!((copying.told.above_99.mean, copying.told.auc.mean), (1.0, 1.0), "{copying:?}");
        assert!(copying.training > 1.0 - 1e-6 && copying.held_out < 0.9, "{copying:?}");
    }

    #[test]
    fn new_images_of_the_same_captions_are_no_copies() {
        let world = World { noise: Noise::new(1) };
        let drawn: Vec<_> = (0..10).flat_map(|caption| (100..104).map(move |image| (caption, image))).collect();
        let drawn: Vec<_> = drawn.into_iter().map(|(caption, image)| world.feature(caption, image)).collect();
        let copying = Copying::of(&[&world.compared().nearness(&drawn)], 1).unwrap();
        assert!(copying.told.auc.low < 0.5 && 0.5 < copying.told.auc.high, "{copying:?}");
        assert!(copying.told.above_99.low == 0.0 && copying.training > 0.3, "{copying:?}");
    }

    #[test]
    fn the_best_of_parts_is_the_nearest_of_all_their_images() {
        let world = World { noise: Noise::new(2) };
        let (compared, members) = (world.compared(), world.members());
        let (one, two) = members.split_at(3);
        let (first, second) = (compared.nearness(one), compared.nearness(two));
        assert_eq!(Nearness::best(&[(&first, 3), (&second, 7)]).unwrap(), compared.nearness(&members));
        assert!(Nearness::best(&[]).is_none());
    }

    #[test]
    fn an_image_without_a_direction_resembles_nothing() {
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 2.0]), 0.0);
        assert!((cosine(&[1.0, 2.0], &[2.0, 4.0]) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_held_out_image_nearest_to_a_drawn_one_is_one_of_the_same_caption() {
        let world = World { noise: Noise::new(3) };
        let nearest = world.compared().nearest_held_out(4, &world.feature(4, 7));
        assert_eq!(nearest.drawn, 6, "the seventh held-out image is place 6");
        assert!(nearest.similarity > 1.0 - 1e-6);
    }
}
