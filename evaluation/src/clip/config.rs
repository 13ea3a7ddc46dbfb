//! `config.json` of a CLIP model, with the defaults that transformers gives to absent keys.

use serde::Deserialize;
use serde_json::Value;

use super::tower::TowerConfig;
use crate::error::{Error, Result};

const FILE: &str = "config.json";

/// The shape of both towers.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Width of the common space of pictures and texts.
    pub projection_dim: usize,
    /// The text tower.
    pub text: TextConfig,
    /// The image tower.
    pub vision: VisionConfig,
}

/// The shape of the text tower.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Number of tokens known.
    pub vocab_size: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// Heads of each attention; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Longest text in tokens.
    pub max_position_embeddings: usize,
    /// The feed-forward blocks' activation.
    pub hidden_act: Activation,
    /// Added to the variance in every norm.
    pub layer_norm_eps: f64,
    /// The token whose hidden state stands for the text. Old files say 2, which is no such token;
    /// then the highest id in the text is taken, as transformers does.
    pub eos_token_id: u32,
}

/// The shape of the image tower.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    pub num_hidden_layers: usize,
    /// Heads of each attention; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Colour channels.
    pub num_channels: usize,
    /// Side of the square input in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels; it divides `image_size`.
    pub patch_size: usize,
    /// The feed-forward blocks' activation.
    pub hidden_act: Activation,
    /// Added to the variance in every norm.
    pub layer_norm_eps: f64,
}

/// The activation of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
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

impl ClipConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// When it is not JSON, is no CLIP configuration, or describes an impossible shape.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let parse = |source| Error::Settings { file: FILE, source };
        let root: Value = serde_json::from_slice(json).map_err(parse)?;
        let config = Self {
            projection_dim: root["projection_dim"].as_u64().unwrap_or(512) as usize,
            text: serde_json::from_value(section(&root, "text_config")).map_err(parse)?,
            vision: serde_json::from_value(section(&root, "vision_config")).map_err(parse)?,
        };
        config.require_possible()?;
        Ok(config)
    }

    fn require_possible(&self) -> Result<()> {
        let vision = &self.vision;
        require_divides("num_attention_heads", self.text.num_attention_heads, self.text.hidden_size)?;
        require_divides("num_attention_heads", vision.num_attention_heads, vision.hidden_size)?;
        require_divides("patch_size", vision.patch_size, vision.image_size)?;
        if vision.num_channels != 3 {
            return Err(unsupported("num_channels", "3".to_owned(), vision.num_channels));
        }
        Ok(())
    }
}

impl TextConfig {
    /// An error unless texts of `length` tokens have positions.
    pub(super) fn require_room_for(&self, length: usize) -> Result<()> {
        if length > self.max_position_embeddings {
            let expected = format!("at least {length}, the tokenizer's length");
            let found = self.max_position_embeddings;
            return Err(unsupported("max_position_embeddings", expected, found));
        }
        Ok(())
    }

    pub(super) fn tower(&self) -> TowerConfig {
        TowerConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            epsilon: self.layer_norm_eps,
        }
    }
}

impl VisionConfig {
    pub(super) fn tower(&self) -> TowerConfig {
        TowerConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            epsilon: self.layer_norm_eps,
        }
    }

    /// Number of patches of a picture.
    pub(super) fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

/// A tower's section, overlaid by the older `…_config_dict` where a file has both.
fn section(root: &Value, key: &str) -> Value {
    let mut section = root[key].as_object().cloned().unwrap_or_default();
    if let Some(overlay) = root[format!("{key}_dict")].as_object() {
        section.extend(overlay.clone());
    }
    Value::Object(section)
}

fn require_divides(setting: &'static str, part: usize, whole: usize) -> Result<()> {
    if part == 0 || whole == 0 || !whole.is_multiple_of(part) {
        return Err(unsupported(setting, format!("a divisor of {whole}"), part));
    }
    Ok(())
}

fn unsupported(setting: &'static str, expected: String, found: usize) -> Error {
    Error::UnsupportedSetting { file: FILE, setting, expected, found: found.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_keys_take_the_defaults_of_the_first_published_model() {
        let config = ClipConfig::from_json(b"{}").unwrap();
        assert_eq!(config.projection_dim, 512);
        assert_eq!(config.text, TextConfig::default());
        assert_eq!(config.vision.patches(), 49);
    }

    #[test]
    fn the_older_dictionary_overrides_the_section() {
        let json = br#"{"text_config": {"hidden_size": 8, "num_attention_heads": 2},
                        "text_config_dict": {"hidden_size": 16, "hidden_act": "gelu"}}"#;
        let config = ClipConfig::from_json(json).unwrap();
        assert_eq!(config.text.hidden_size, 16);
        assert_eq!(config.text.num_attention_heads, 2);
        assert_eq!(config.text.hidden_act, Activation::Gelu);
    }

    #[test]
    fn impossible_shapes_are_named() {
        let json = br#"{"vision_config": {"image_size": 32, "patch_size": 7}}"#;
        let message = ClipConfig::from_json(json).unwrap_err().to_string();
        assert_eq!(message, "`config.json` sets `patch_size`: expected a divisor of 32, found `7`");
    }

    #[test]
    fn an_unknown_activation_is_an_error() {
        let json = br#"{"text_config": {"hidden_act": "relu"}}"#;
        assert!(matches!(ClipConfig::from_json(json), Err(Error::Settings { .. })));
    }
}
