//! `text_encoder/config.json` and `text_encoder_2/config.json`.

use std::collections::BTreeMap;

use catelier_adapters::Component;
use serde::{Deserialize, Serialize};

use super::check::{Check, Rule, Table};
use crate::error::Result;
use crate::models::files::ModelFiles;

/// The activation of a text encoder's feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// `x * Phi(x)` with the exact error function: OpenCLIP.
    Gelu,
}

/// `config.json` of a `CLIPTextModel` or `CLIPTextModelWithProjection`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TextEncoderConfig {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width between the projections of the feed-forward layers.
    pub intermediate_size: usize,
    /// Width of the projected pooled output.
    pub projection_dim: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Length of the longest prompt in tokens, including both special tokens.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of every layer normalisation.
    pub layer_norm_eps: f64,
    /// Id of the end token. Old files have 2 for every vocabulary; the prompt then ends at its highest id.
    pub eos_token_id: u32,
    /// The class of transformers that saved the weights.
    #[serde(skip_serializing)]
    pub architectures: Vec<String>,
}

impl Default for TextEncoderConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            architectures: Vec::new(),
        }
    }
}

/// The keys of a `CLIPTextConfig`.
pub(super) const TEXT_ENCODER: &Table = &[
    ("_name_or_path", Rule::Irrelevant),
    ("architectures", Rule::List(8, &Rule::Text)),
    // Dropout is not active outside of the base's own training.
    ("attention_dropout", Rule::Irrelevant),
    ("bos_token_id", Rule::Irrelevant),
    ("dropout", Rule::Irrelevant),
    ("dtype", Rule::Irrelevant),
    ("eos_token_id", Rule::Whole(0, u32::MAX as u64)),
    ("hidden_act", Rule::OneOf(&["\"quick_gelu\"", "\"gelu\""])),
    ("hidden_size", Rule::Whole(1, 16_384)),
    ("initializer_factor", Rule::Irrelevant),
    ("initializer_range", Rule::Irrelevant),
    ("intermediate_size", Rule::Whole(1, 65_536)),
    ("layer_norm_eps", Rule::Real(0.0, 1.0)),
    ("max_position_embeddings", Rule::Whole(3, 65_536)),
    ("model_type", Rule::OneOf(&["\"clip_text_model\""])),
    ("num_attention_heads", Rule::Whole(1, 1024)),
    ("num_hidden_layers", Rule::Whole(1, 256)),
    // The tokenizer's own files decide.
    ("pad_token_id", Rule::Irrelevant),
    ("projection_dim", Rule::Whole(1, 16_384)),
    ("torch_dtype", Rule::Irrelevant),
    ("transformers_version", Rule::Irrelevant),
    ("vocab_size", Rule::Whole(3, 1_000_000)),
];

impl TextEncoderConfig {
    /// Reads `config.json` in the folder `component`: `text_encoder` or `text_encoder_2`.
    ///
    /// # Errors
    /// [`crate::Error::InvalidConfig`], or [`crate::Error::UnsupportedSettings`] with every key that is not supported.
    pub fn load(files: &ModelFiles, component: &str) -> Result<Self> {
        let mut check = Check::new(&format!("{component}/config.json"), files, TEXT_ENCODER)?;
        let config: Self = check.parse()?;
        check.divides("num_attention_heads", config.num_attention_heads, config.hidden_size);
        check.finish()?;
        Ok(config)
    }

    /// Reads the configurations of `text_encoder` and, where there is one, `text_encoder_2`.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_all(files: &ModelFiles) -> Result<BTreeMap<Component, Self>> {
        let second = files.exists("text_encoder_2/config.json").then_some(Component::TextEncoder2);
        let load = |component: Component| Ok((component, Self::load(files, component.name())?));
        std::iter::once(Component::TextEncoder).chain(second).map(load).collect()
    }

    /// Whether the weights have a projection of the pooled prompt (`CLIPTextModelWithProjection`).
    pub fn projects(&self) -> bool {
        self.architectures.iter().any(|name| name.ends_with("WithProjection"))
    }
}
