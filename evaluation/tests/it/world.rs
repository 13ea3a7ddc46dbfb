//! Synthetic images and an extractor that measures colour, for tests without a model.

use std::cell::Cell;

use catelier_evaluation::{Choices, Evaluation, Generation, ImagePair, OtherArtist, Reference, TriggerImage};
use catelier_features::{Extractor, Feature, ImageFeatures, Result, TextFeatures};
use catelier_prompts::PromptKind;
use image::{Rgb, RgbImage};

/// Measures an image by its mean colour, and a text by the colour word in it.
pub(crate) struct ByColour {
    extractor: Extractor,
    images: Cell<usize>,
}

impl ByColour {
    pub(crate) fn new() -> Self {
        let (name, sha256) = ("by colour".to_owned(), "c0".repeat(32));
        Self { extractor: Extractor { name, sha256 }, images: Cell::new(0) }
    }
}

impl ByColour {
    /// Number of images measured since the last call.
    pub(crate) fn images_measured(&self) -> usize {
        self.images.take()
    }
}

impl ImageFeatures for ByColour {
    fn extractor(&self) -> &Extractor {
        &self.extractor
    }

    fn image_features(&self, images: &[&RgbImage]) -> Result<Vec<Feature>> {
        self.images.set(self.images.get() + images.len());
        Ok(images.iter().map(|image| mean_colour(image)).collect())
    }
}

impl TextFeatures for ByColour {
    fn text_features(&self, texts: &[&str]) -> Result<Vec<Feature>> {
        let colour = |text: &&str| match text {
            text if text.contains("red") => vec![1.0, 0.0, 0.0],
            text if text.contains("green") => vec![0.0, 1.0, 0.0],
            _ => vec![0.0, 0.0, 1.0],
        };
        Ok(texts.iter().map(colour).collect())
    }
}

fn mean_colour(image: &RgbImage) -> Feature {
    let mut sums = vec![0.0_f32; 3];
    for pixel in image.pixels() {
        for (sum, level) in sums.iter_mut().zip(pixel.0) {
            *sum += f32::from(level);
        }
    }
    sums
}

pub(crate) const RED: Rgb<u8> = Rgb([250, 10, 10]);
pub(crate) const GREEN: Rgb<u8> = Rgb([10, 250, 10]);
pub(crate) const BLUE: Rgb<u8> = Rgb([10, 10, 250]);

pub(crate) fn flat(colour: Rgb<u8>) -> RgbImage {
    RgbImage::from_pixel(8, 8, colour)
}

/// Two pairs, a red house and a green boat, with given adapted images, and one image with the trigger.
pub(crate) struct World {
    pub(crate) house: RgbImage,
    pub(crate) boat: RgbImage,
    pub(crate) adapted_house: RgbImage,
    pub(crate) adapted_boat: RgbImage,
    pub(crate) triggered: RgbImage,
    pub(crate) references: Vec<Reference>,
    pub(crate) others: Vec<OtherArtist>,
    choices: Choices,
}

impl World {
    /// The artist paints everything blue.
    pub(crate) fn new(adapted_house: Rgb<u8>, adapted_boat: Rgb<u8>, triggered: Rgb<u8>) -> Self {
        Self {
            house: flat(RED),
            boat: flat(GREEN),
            adapted_house: flat(adapted_house),
            adapted_boat: flat(adapted_boat),
            triggered: flat(triggered),
            references: vec![Reference { image: flat(BLUE), caption: None }; 2],
            others: vec![OtherArtist { name: "gardener".to_owned(), images: vec![flat(GREEN)] }],
            choices: Choices::among(["a red house", "a green boat", "a blue cat"]),
        }
    }

    pub(crate) fn evaluation(&self) -> Evaluation<'_> {
        Evaluation {
            without_trigger: vec![
                pair("a red house", "house", PromptKind::SameClass, &self.house, &self.adapted_house),
                pair("a green boat", "boat", PromptKind::Unrelated, &self.boat, &self.adapted_boat),
            ],
            // The artist paints everything blue; a cat is blue by itself.
            with_trigger: vec![TriggerImage { prompt: "a blue cat".to_owned(), seed: 1, adapted: &self.triggered }],
            references: &self.references,
            others: &self.others,
            choices: &self.choices,
            generation: Generation {
                base: "made up".to_owned(),
                trigger: Some("sks".to_owned()),
                sampler: "none".to_owned(),
                steps: 1,
                guidance: 1.0,
                guidance_from: "empty".into(),
                guidance_range: "0-1".into(),
                width: 8,
                height: 8,
                ..Generation::default()
            },
            bootstrap_seed: 5,
        }
    }
}

fn pair<'a>(prompt: &str, class: &str, kind: PromptKind, base: &'a RgbImage, adapted: &'a RgbImage) -> ImagePair<'a> {
    ImagePair { prompt: prompt.to_owned(), kind, class: Some(class.to_owned()), seed: 1, base, adapted }
}
