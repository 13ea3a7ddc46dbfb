//! The shapes of well-known bases: their configurations, without their weights.

use std::fmt;

use catelier_pipelines::models::files::{EmbeddedFile, ModelFiles};

/// A well-known base. Only its shape is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Stable Diffusion 1.5.
    Sd15,
    /// Stable Diffusion 2.1.
    Sd21,
    /// Stable Diffusion XL 1.0, base.
    Sdxl,
}

/// Files of `shapes/` as a model folder: files at the same path below the shape's folder, then pairs of a path in the
/// model folder and a path below `shapes/tokenizer/`.
macro_rules! shape_files {
    ($shape:literal: $($path:literal),+; $($there:literal = $here:literal),+ $(,)?) => {
        &[
            $(EmbeddedFile { path: $path, bytes: include_bytes!(concat!("shapes/", $shape, "/", $path)) },)+
            $(EmbeddedFile { path: $there, bytes: include_bytes!(concat!("shapes/tokenizer/", $here)) },)+
        ]
    };
}

static SD15: &[EmbeddedFile] = shape_files![
    "sd15": "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json",
    "vae/config.json";
    "tokenizer/vocab.json" = "vocab.json", "tokenizer/merges.txt" = "merges.txt",
    "tokenizer/tokenizer_config.json" = "tokenizer_config.json"
];

static SD21: &[EmbeddedFile] = shape_files![
    "sd21": "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json",
    "vae/config.json";
    "tokenizer/vocab.json" = "vocab.json", "tokenizer/merges.txt" = "merges.txt",
    "tokenizer/tokenizer_config.json" = "tokenizer_config.json"
];

static SDXL: &[EmbeddedFile] = shape_files![
    "sdxl": "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json",
    "text_encoder_2/config.json", "unet/config.json", "vae/config.json";
    "tokenizer/vocab.json" = "vocab.json", "tokenizer/merges.txt" = "merges.txt",
    "tokenizer/tokenizer_config.json" = "tokenizer_config.json",
    "tokenizer_2/vocab.json" = "vocab.json", "tokenizer_2/merges.txt" = "merges.txt",
    "tokenizer_2/tokenizer_config.json" = "tokenizer_config.json"
];

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 3] = [Self::Sd15, Self::Sd21, Self::Sdxl];

    /// A model of this shape with random weights drawn from `seed`. Its tokenizer splits prompts into letters.
    pub fn files(self, seed: u64) -> ModelFiles {
        let files = match self {
            Self::Sd15 => SD15,
            Self::Sd21 => SD21,
            Self::Sdxl => SDXL,
        };
        ModelFiles::random(self.to_string(), files, seed)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Sd15 => "sd15",
            Self::Sd21 => "sd21",
            Self::Sdxl => "sdxl",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catelier_pipelines::diffusion::NoiseSchedule;
    use catelier_pipelines::models::{TextEncoderConfig, UNetConfig, VaeConfig};

    #[test]
    fn every_shape_is_a_configuration_that_the_models_follow() {
        for shape in Shape::ALL {
            let files = shape.files(1);
            let unet = UNetConfig::load(&files).unwrap();
            let text = TextEncoderConfig::load(&files, "text_encoder").unwrap();
            let second = files.exists("text_encoder_2/config.json");
            let second = second.then(|| TextEncoderConfig::load(&files, "text_encoder_2").unwrap().hidden_size);
            assert_eq!(text.hidden_size + second.unwrap_or(0), unet.context_width(), "{shape}");
            assert_eq!(VaeConfig::load(&files, "vae").unwrap().factor(), 8, "{shape}");
            NoiseSchedule::load(&files).unwrap();
        }
    }
}
