//! PNG files that record how their image was made.
//!
//! The text chunk `parameters` has the form that web interfaces read and write: the prompt, a line `Negative prompt: …`
//! if there is one, then `Steps: …, Sampler: …, CFG scale: …, …`.

use std::fmt;
use std::io;
use std::path::Path;

use image::RgbImage;

use super::guidance::{GuidanceFrom, GuidanceRange};
use crate::error::{Error, Result};

/// The keyword of the text chunk.
const KEYWORD: &str = "parameters";

/// The settings that an image was made with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageParameters {
    /// The prompt.
    pub prompt: String,
    /// The negative prompt, if any.
    pub negative: Option<String>,
    /// Sampler steps.
    pub steps: usize,
    /// The sampler's label: [`SamplerKind::label`](crate::diffusion::sampler::SamplerKind::label).
    pub sampler: String,
    /// Strength of classifier-free guidance.
    pub guidance: f64,
    /// Where guidance started from.
    pub guidance_from: GuidanceFrom,
    /// The steps in which guidance acted.
    pub guidance_range: GuidanceRange,
    /// The image's seed.
    pub seed: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The base model's name.
    pub model: String,
    /// The base model's fingerprint, if known.
    pub model_hash: Option<String>,
    /// Name and hash of every adapter.
    pub adapters: Vec<(String, String)>,
    /// The program and its version: `catelier 0.1.0`.
    pub version: String,
}

impl fmt::Display for ImageParameters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.prompt)?;
        if let Some(negative) = self.negative.as_deref().filter(|negative| !negative.is_empty()) {
            writeln!(formatter, "Negative prompt: {negative}")?;
        }
        let settings: Vec<String> =
            self.settings().iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
        formatter.write_str(&settings.join(", "))
    }
}

impl ImageParameters {
    /// Keys and values of the last line, in the order that readers expect.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("Steps", self.steps.to_string()),
            ("Sampler", self.sampler.clone()),
            ("CFG scale", self.guidance.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", format!("{}x{}", self.width, self.height)),
        ];
        if self.guidance_from != GuidanceFrom::EMPTY {
            settings.push(("Guidance from", self.guidance_from.to_string()));
        }
        if self.guidance_range != GuidanceRange::WHOLE {
            settings.push(("Guidance range", self.guidance_range.to_string()));
        }
        settings.extend(self.model_hash.clone().map(|hash| ("Model hash", hash)));
        settings.push(("Model", self.model.clone()));
        if !self.adapters.is_empty() {
            let hashes: Vec<String> = self.adapters.iter().map(|(name, hash)| format!("{name}: {hash}")).collect();
            settings.push(("Lora hashes", hashes.join(", ")));
        }
        settings.push(("Version", self.version.clone()));
        settings
    }
}

/// A value of the last line, quoted as JSON if it contains a comma, a colon or a line break.
fn quoted(value: &str) -> String {
    match value.contains([',', ':', '\n']) {
        true => serde_json::Value::from(value).to_string(),
        false => value.to_owned(),
    }
}

/// Writes `image` to `path` as a PNG, with its `parameters` if given. A failed write leaves no partial file.
///
/// # Errors
/// [`Error::WriteImage`] if the file cannot be written.
pub fn write_png(path: &Path, image: &RgbImage, parameters: Option<&ImageParameters>) -> Result<()> {
    let text = parameters.map(ToString::to_string);
    let bytes = png_bytes(image, text.as_deref()).map_err(|source| Error::WriteImage { path: path.into(), source })?;
    Ok(catelier_numerics::atomic::write(path, |file| file.write_all(&bytes))?)
}

/// The bytes of a PNG file; text beyond Latin-1 goes into an `iTXt` chunk.
fn png_bytes(image: &RgbImage, text: Option<&str>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    match text {
        Some(text) if text.chars().all(|letter| u32::from(letter) < 256) => {
            encoder.add_text_chunk(KEYWORD.into(), text.into())?;
        }
        Some(text) => encoder.add_itxt_chunk(KEYWORD.into(), text.into())?,
        None => {}
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> ImageParameters {
        ImageParameters {
            prompt: "a painting of a red teapot".into(),
            negative: Some("blurry, dark".into()),
            steps: 20,
            sampler: "DPM++ 2M".into(),
            guidance: 7.5,
            guidance_from: GuidanceFrom::EMPTY,
            guidance_range: GuidanceRange::WHOLE,
            seed: 42,
            width: 64,
            height: 48,
            model: "base: small".into(),
            model_hash: Some("0123456789".into()),
            adapters: vec![("shs".into(), "aabbccddeeff".into()), ("sts".into(), "001122334455".into())],
            version: "catelier 0.1.0".into(),
        }
    }

    #[test]
    fn parameters_read_as_web_interfaces_write_them() {
        let expected = "a painting of a red teapot\n\
            Negative prompt: blurry, dark\n\
            Steps: 20, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 42, Size: 64x48, \
            Model hash: 0123456789, Model: \"base: small\", \
            Lora hashes: \"shs: aabbccddeeff, sts: 001122334455\", Version: catelier 0.1.0";
        assert_eq!(parameters().to_string(), expected);
    }

    #[test]
    fn guidance_that_starts_elsewhere_or_pauses_is_recorded() {
        let (guidance_from, guidance_range) = (GuidanceFrom::TRIGGER, "0.2-1".parse().unwrap());
        let text = ImageParameters { guidance_from, guidance_range, ..parameters() }.to_string();
        assert!(text.contains("Size: 64x48, Guidance from: trigger, Guidance range: 0.2-1, Model hash"), "{text}");
    }

    #[test]
    fn an_image_without_negative_prompt_has_no_such_line() {
        let text = ImageParameters { negative: None, ..parameters() }.to_string();
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains("Negative"));
    }

    fn read_back(path: &Path) -> (Vec<u8>, String) {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        let info = reader.info();
        let latin = info.uncompressed_latin1_text.iter().map(|chunk| chunk.text.clone());
        let international = info.utf8_text.iter().map(|chunk| chunk.get_text().unwrap());
        (pixels, latin.chain(international).collect())
    }

    #[test]
    fn pixels_and_text_read_back_whatever_the_script() {
        let folder = tempfile::tempdir().unwrap();
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 50, y as u8 * 80, 7]));
        for prompt in ["a café", "水彩の茶瓶"] {
            let path = folder.path().join("picture.png");
            let parameters = ImageParameters { prompt: prompt.into(), ..parameters() };
            write_png(&path, &image, Some(&parameters)).unwrap();
            assert_eq!(read_back(&path), (image.as_raw().clone(), parameters.to_string()));
        }
    }
}
