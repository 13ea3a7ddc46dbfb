//! Images to pixel tensors, exactly as transformers' Pillow processors compute them: resize with antialiasing in eight
//! bits, crop the centre, scale to [0, 1], normalise each channel.

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Computing, Error, Result};
use crate::resize::{Filter, resize};

const FILE: &str = "preprocessor_config.json";

/// The settings that turn images into the input of an image tower.
#[derive(Debug, Clone, Deserialize)]
pub struct Preprocessing {
    do_resize: bool,
    size: Size,
    resample: u8,
    do_center_crop: bool,
    crop_size: Size,
    do_rescale: bool,
    rescale_factor: f32,
    do_normalize: bool,
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

/// A size in any form that files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Size {
    /// `{"shortest_edge": 224}`.
    ShortestEdge { shortest_edge: u32 },
    /// `{"height": 224, "width": 224}`.
    Exact { height: u32, width: u32 },
    /// `224`: the shortest edge when resizing, a square when cropping.
    Plain(u32),
}

impl Preprocessing {
    /// Reads `preprocessor_config.json`; absent keys take the defaults of the processor that it names.
    ///
    /// # Errors
    /// When it is not JSON of the expected form, or names an unknown filter.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let malformed = |source| Error::Settings { file: FILE, source };
        let stated: Map<String, Value> = serde_json::from_slice(json).map_err(malformed)?;
        let mut settings = defaults(&stated);
        settings.extend(stated.into_iter().filter(|(_, value)| !value.is_null()));
        let settings: Self = serde_json::from_value(Value::Object(settings)).map_err(malformed)?;
        settings.filter()?;
        Ok(settings)
    }

    /// An error unless every image is turned into a square of `side` pixels.
    pub(crate) fn require_output(&self, side: usize) -> Result<()> {
        let square = |size: Size| match size {
            Size::Exact { height, width } => (height, width),
            Size::Plain(side) | Size::ShortestEdge { shortest_edge: side } => (side, side),
        };
        let fits = |(height, width): (u32, u32)| height as usize == side && width as usize == side;
        let (setting, size, possible) = if self.do_center_crop {
            let resized = square(self.size);
            let large_enough = self.do_resize && resized.0.min(resized.1) as usize >= side;
            ("crop_size", self.crop_size, large_enough)
        } else {
            ("size", self.size, self.do_resize && matches!(self.size, Size::Exact { .. }))
        };
        if possible && fits(square(size)) {
            return Ok(());
        }
        Err(Error::UnsupportedSetting {
            file: FILE,
            setting,
            expected: format!("images resized and cut to {side}x{side}, the tower's input"),
            found: format!("{size:?}"),
        })
    }

    /// Pixels of images, `[n, 3, side, side]` f32.
    ///
    /// # Errors
    /// When an image has no pixels or the tensor cannot be made.
    pub fn pixels(&self, images: &[&RgbImage], device: &Device) -> Result<Tensor> {
        let prepared = images.iter().enumerate().map(|(index, image)| self.pixels_of(index, image, device));
        Tensor::stack(&prepared.collect::<Result<Vec<_>>>()?, 0).computing("pixels")
    }

    /// Pixels of the image with this position in its list, `[3, side, side]` f32.
    pub(crate) fn pixels_of(&self, index: usize, image: &RgbImage, device: &Device) -> Result<Tensor> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(Error::EmptyImage { index, width, height });
        }
        let cut = self.centre(self.resized(image)?);
        let (width, height) = cut.dimensions();
        let shape = (3, height as usize, width as usize);
        Tensor::from_vec(self.normalised(&cut), shape, device).computing("pixels")
    }

    fn resized(&self, image: &RgbImage) -> Result<RgbImage> {
        if !self.do_resize {
            return Ok(image.clone());
        }
        let target = self.target(image.width(), image.height());
        Ok(resize(image, target, self.filter()?))
    }

    /// The size to resize to; the longer edge is rounded down to whole pixels, as in transformers' processors.
    fn target(&self, width: u32, height: u32) -> (u32, u32) {
        match self.size {
            Size::Exact { height, width } => (width, height),
            Size::Plain(edge) | Size::ShortestEdge { shortest_edge: edge } => {
                let shorter = u64::from(width.min(height));
                let scale = |side: u32| (u64::from(edge) * u64::from(side) / shorter) as u32;
                (scale(width), scale(height))
            }
        }
    }

    fn filter(&self) -> Result<Filter> {
        Filter::numbered(self.resample).ok_or_else(|| Error::UnsupportedSetting {
            file: FILE,
            setting: "resample",
            expected: "a Pillow filter from 0 to 5".to_owned(),
            found: self.resample.to_string(),
        })
    }

    fn centre(&self, image: RgbImage) -> RgbImage {
        if !self.do_center_crop {
            return image;
        }
        let (width, height) = match self.crop_size {
            Size::Exact { height, width } => (width, height),
            Size::Plain(side) | Size::ShortestEdge { shortest_edge: side } => (side, side),
        };
        let left = image.width().saturating_sub(width) / 2;
        let top = image.height().saturating_sub(height) / 2;
        image::imageops::crop_imm(&image, left, top, width, height).to_image()
    }

    /// The normalised values, channel by channel and row by row.
    fn normalised(&self, image: &RgbImage) -> Vec<f32> {
        let factor = if self.do_rescale { self.rescale_factor } else { 1.0 };
        let mut values = Vec::with_capacity(image.as_raw().len());
        for channel in 0..3 {
            let (mean, deviation) = match self.do_normalize {
                true => (self.image_mean[channel], self.image_std[channel]),
                false => (0.0, 1.0),
            };
            let levels = image.pixels().map(|pixel| f32::from(pixel.0[channel]));
            values.extend(levels.map(|level| (level * factor - mean) / deviation));
        }
        values
    }
}

/// The values that transformers' processors give to absent keys.
fn defaults(stated: &Map<String, Value>) -> Map<String, Value> {
    let processor = stated.get("image_processor_type").and_then(Value::as_str).unwrap_or_default();
    let siglip = processor.starts_with("Siglip");
    let (mean, deviation) = match siglip {
        true => ([0.5; 3], [0.5; 3]),
        false => ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]),
    };
    let values = json!({
        "do_resize": true,
        "size": if siglip { json!({"height": 224, "width": 224}) } else { json!(224) },
        "resample": 3,
        "do_center_crop": !siglip,
        "crop_size": 224,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": mean,
        "image_std": deviation,
    });
    values.as_object().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Preprocessing {
        Preprocessing::from_json(json.as_bytes()).unwrap()
    }

    #[test]
    fn the_shorter_edge_is_met_and_the_longer_one_is_cut_to_whole_pixels() {
        let settings = settings(r#"{"size": {"shortest_edge": 32}}"#);
        assert_eq!(settings.target(70, 52), (43, 32));
        assert_eq!(settings.target(52, 70), (32, 43));
        assert_eq!(settings.target(8, 8), (32, 32));
    }

    #[test]
    fn plain_numbers_of_old_files_are_understood() {
        let settings = settings(r#"{"size": 224, "crop_size": 224, "resample": 3}"#);
        assert!(settings.require_output(224).is_ok());
        assert!(settings.require_output(336).is_err());
    }

    #[test]
    fn a_crop_larger_than_the_resized_image_is_refused() {
        let settings = settings(r#"{"size": 16, "crop_size": 32}"#);
        assert!(settings.require_output(32).is_err());
    }

    #[test]
    fn an_unknown_filter_is_named() {
        let error = Preprocessing::from_json(br#"{"resample": 9}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`preprocessor_config.json` sets `resample`: expected a Pillow filter from 0 to 5, found `9`"
        );
    }

    #[test]
    fn an_empty_image_is_an_error_and_not_a_panic() {
        let settings = settings(r#"{"size": 8, "crop_size": 8}"#);
        let empty = RgbImage::new(0, 5);
        assert!(matches!(settings.pixels(&[&empty], &Device::Cpu), Err(Error::EmptyImage { index: 0, .. })));
    }

    #[test]
    fn one_colour_stays_that_colour_in_every_channel_order() {
        let settings =
            settings(r#"{"size": 4, "crop_size": 4, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#);
        let image = RgbImage::from_pixel(13, 9, image::Rgb([255, 0, 51]));
        let pixels = settings.pixels(&[&image], &Device::Cpu).unwrap();
        let channels = pixels.flatten_from(2).unwrap().squeeze(0).unwrap();
        for (channel, expected) in channels.to_vec2::<f32>().unwrap().iter().zip([1.0, -1.0, -0.6]) {
            assert!(channel.iter().all(|value| (value - expected).abs() < 1e-6));
        }
    }

    #[test]
    fn siglip_processors_neither_crop_nor_keep_the_aspect_unless_the_file_says_so() {
        let settings = settings(r#"{"image_processor_type": "SiglipImageProcessor", "do_center_crop": null}"#);
        assert!(settings.require_output(224).is_ok());
        assert_eq!(settings.target(70, 52), (224, 224));
        assert_eq!(settings.image_mean, [0.5; 3]);
    }
}
