//! `config.json` of CLIP and SigLIP models; absent keys take the defaults of transformers.

use candle_transformers::models::siglip;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

const FILE: &str = "config.json";

/// `model_type` of an image tower by itself.
const IMAGES_ALONE: &str = "clip_vision_model";

/// Largest side of an image tower's input, in pixels; published models stay below 1024.
const LARGEST_IMAGE: usize = 4096;

/// Longest text in tokens; published models stay below 512.
const LONGEST_TEXT: usize = 65_536;

/// A model's family and the shape of its towers.
#[derive(Debug)]
pub(super) enum ModelConfig {
    /// OpenAI's and OpenCLIP's models, as transformers writes them.
    Clip(ClipConfig),
    /// Models trained with the sigmoid loss: SigLIP, and SigLIP 2 of fixed resolution.
    Siglip(siglip::Config),
}

/// The shape of both towers of a CLIP model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ClipConfig {
    /// Width of the space that images and texts share.
    pub(super) projection_dim: usize,
    /// The text tower.
    pub(super) text: TextConfig,
    /// The image tower.
    pub(super) vision: VisionConfig,
}

/// The shape of the text tower.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct TextConfig {
    /// Entries of the vocabulary.
    pub(super) vocab_size: usize,
    /// Width of the hidden state.
    pub(super) hidden_size: usize,
    /// Width inside the feed-forward blocks.
    pub(super) intermediate_size: usize,
    /// Number of transformer blocks.
    pub(super) num_hidden_layers: usize,
    /// Heads of each attention; they divide `hidden_size`.
    pub(super) num_attention_heads: usize,
    /// Longest text in tokens.
    pub(super) max_position_embeddings: usize,
    /// The feed-forward blocks' activation.
    pub(super) hidden_act: Activation,
    /// Added to the variance in every norm.
    pub(super) layer_norm_eps: f64,
    /// The end token, whose hidden state is the text's feature. Old files say 2, which is not the end token; then the
    /// highest id in the text is taken, as in transformers.
    pub(super) eos_token_id: u32,
}

/// The shape of the image tower.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct VisionConfig {
    /// Width of the hidden state.
    pub(super) hidden_size: usize,
    /// Width inside the feed-forward blocks.
    pub(super) intermediate_size: usize,
    /// Number of transformer blocks.
    pub(super) num_hidden_layers: usize,
    /// Heads of each attention; they divide `hidden_size`.
    pub(super) num_attention_heads: usize,
    /// Colour channels.
    pub(super) num_channels: usize,
    /// Side of the square input in pixels.
    pub(super) image_size: usize,
    /// Side of a patch in pixels; it divides `image_size`.
    pub(super) patch_size: usize,
    /// The feed-forward blocks' activation.
    pub(super) hidden_act: Activation,
    /// Added to the variance in every norm.
    pub(super) layer_norm_eps: f64,
}

/// The activation of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Activation {
    /// `x * sigmoid(1.702 x)`, in OpenAI's models.
    QuickGelu,
    /// The exact Gaussian error linear unit, in OpenCLIP's models.
    Gelu,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// If it is not JSON, has another family, or describes an impossible shape.
    pub(super) fn from_json(json: &[u8]) -> Result<Self> {
        let root: Value = serde_json::from_slice(json).map_err(malformed)?;
        match root["model_type"].as_str().unwrap_or("clip") {
            "clip" => ClipConfig::from_root(&root).map(Self::Clip),
            "siglip" => siglip_config(&root).map(Self::Siglip),
            IMAGES_ALONE => Err(unsupported("model_type", "a model with both towers".to_owned(), IMAGES_ALONE)),
            other => Err(unsupported("model_type", "`clip` or `siglip`".to_owned(), other)),
        }
    }

    /// Reads `config.json` for the image tower alone: it may also be that of transformers' `CLIPVisionModelWithProjection`,
    /// which has no text tower.
    ///
    /// # Errors
    /// Those of [`from_json`](Self::from_json).
    pub(super) fn of_images(json: &[u8]) -> Result<Self> {
        let root: Value = serde_json::from_slice(json).map_err(malformed)?;
        match root["model_type"].as_str() {
            Some(IMAGES_ALONE) => ClipConfig::from_sections(&root, TextConfig::default(), root.clone()).map(Self::Clip),
            _ => Self::from_json(json),
        }
    }

    /// Side of the square input in pixels.
    pub(super) fn image_size(&self) -> usize {
        match self {
            Self::Clip(config) => config.vision.image_size,
            Self::Siglip(config) => config.vision_config.image_size,
        }
    }
}

impl ClipConfig {
    fn from_root(root: &Value) -> Result<Self> {
        let text = serde_json::from_value(section(root, "text_config")).map_err(malformed)?;
        Self::from_sections(root, text, section(root, "vision_config"))
    }

    fn from_sections(root: &Value, text: TextConfig, vision: Value) -> Result<Self> {
        let config = Self {
            projection_dim: root["projection_dim"].as_u64().unwrap_or(512) as usize,
            text,
            vision: serde_json::from_value(vision).map_err(malformed)?,
        };
        let (text, vision) = (&config.text, &config.vision);
        require_text(text.hidden_size, text.num_attention_heads, text.max_position_embeddings)?;
        require_image(vision.hidden_size, vision.num_attention_heads, vision.num_channels, vision.image_size)?;
        require_divides("patch_size", vision.patch_size, vision.image_size)?;
        Ok(config)
    }
}

/// SigLIP's patches need not divide the image: `so400m-patch14-384` leaves a margin of six pixels.
fn siglip_config(root: &Value) -> Result<siglip::Config> {
    let config = siglip::Config {
        text_config: serde_json::from_value(section(root, "text_config")).map_err(malformed)?,
        vision_config: serde_json::from_value(section(root, "vision_config")).map_err(malformed)?,
    };
    let (text, vision) = (&config.text_config, &config.vision_config);
    require_text(text.hidden_size, text.num_attention_heads, text.max_position_embeddings)?;
    require_image(vision.hidden_size, vision.num_attention_heads, vision.num_channels, vision.image_size)?;
    if !(1..=vision.image_size).contains(&vision.patch_size) {
        return Err(unsupported("patch_size", format!("1 to {}", vision.image_size), vision.patch_size));
    }
    Ok(config)
}

/// A tower's section; keys of the older `…_config_dict` win if a file has both.
fn section(root: &Value, key: &str) -> Value {
    let mut section = root[key].as_object().cloned().unwrap_or_default();
    if let Some(overlay) = root[format!("{key}_dict")].as_object() {
        section.extend(overlay.clone());
    }
    Value::Object(section)
}

fn require_text(hidden_size: usize, heads: usize, positions: usize) -> Result<()> {
    require_divides("num_attention_heads", heads, hidden_size)?;
    require_at_most("max_position_embeddings", positions, LONGEST_TEXT)
}

fn require_image(hidden_size: usize, heads: usize, channels: usize, image_size: usize) -> Result<()> {
    require_divides("num_attention_heads", heads, hidden_size)?;
    if channels != 3 {
        return Err(unsupported("num_channels", "3".to_owned(), channels));
    }
    require_at_most("image_size", image_size, LARGEST_IMAGE)
}

fn require_divides(setting: &'static str, part: usize, whole: usize) -> Result<()> {
    if part == 0 || whole == 0 || !whole.is_multiple_of(part) {
        return Err(unsupported(setting, format!("a divisor of {whole}"), part));
    }
    Ok(())
}

fn require_at_most(setting: &'static str, found: usize, most: usize) -> Result<()> {
    if found > most {
        return Err(unsupported(setting, format!("at most {most}"), found));
    }
    Ok(())
}

fn malformed(source: serde_json::Error) -> Error {
    Error::Settings { file: FILE, source }
}

fn unsupported(setting: &'static str, expected: String, found: impl ToString) -> Error {
    Error::UnsupportedSetting { file: FILE, setting, expected, found: found.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(json: &[u8]) -> ClipConfig {
        match ModelConfig::from_json(json).unwrap() {
            ModelConfig::Clip(config) => config,
            ModelConfig::Siglip(_) => panic!("expected CLIP"),
        }
    }

    fn message(json: &[u8]) -> String {
        ModelConfig::from_json(json).unwrap_err().to_string()
    }

    #[test]
    fn absent_keys_take_the_defaults_of_the_first_published_model() {
        let config = clip(b"{}");
        assert_eq!(config.projection_dim, 512);
        assert_eq!(config.text, TextConfig::default());
        assert_eq!((config.vision.image_size, config.vision.patch_size), (224, 32));
    }

    #[test]
    fn the_older_dictionary_overrides_the_section() {
        let json = br#"{"text_config": {"hidden_size": 8, "num_attention_heads": 2},
                        "text_config_dict": {"hidden_size": 16, "hidden_act": "gelu"}}"#;
        let config = clip(json);
        assert_eq!(config.text.hidden_size, 16);
        assert_eq!(config.text.num_attention_heads, 2);
        assert_eq!(config.text.hidden_act, Activation::Gelu);
    }

    #[test]
    fn impossible_shapes_are_named() {
        let json = br#"{"vision_config": {"image_size": 32, "patch_size": 7}}"#;
        assert_eq!(message(json), "`config.json` sets `patch_size`: expected a divisor of 32, found `7`");
    }

    #[test]
    fn an_unknown_activation_is_an_error() {
        let json = br#"{"text_config": {"hidden_act": "relu"}}"#;
        assert!(matches!(ModelConfig::from_json(json), Err(Error::Settings { .. })));
    }

    #[test]
    fn siglip_takes_its_own_defaults_and_patches_that_leave_a_margin() {
        let json = br#"{"model_type": "siglip", "vision_config": {"image_size": 384, "patch_size": 14}}"#;
        let Ok(ModelConfig::Siglip(config)) = ModelConfig::from_json(json) else { panic!("expected SigLIP") };
        assert_eq!(config.text_config.max_position_embeddings, 64);
        assert_eq!(config.vision_config.num_patches(), 27 * 27);
    }

    #[test]
    fn another_family_is_named() {
        assert_eq!(
            message(br#"{"model_type": "siglip2"}"#),
            "`config.json` sets `model_type`: expected `clip` or `siglip`, found `siglip2`"
        );
    }

    #[test]
    fn a_size_that_would_exhaust_the_memory_is_refused() {
        let json = br#"{"vision_config": {"image_size": 4000000000, "patch_size": 1}}"#;
        assert_eq!(message(json), "`config.json` sets `image_size`: expected at most 4096, found `4000000000`");
    }
}
