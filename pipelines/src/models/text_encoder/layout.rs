//! The structure of a CLIP text encoder: its layers with their shapes, in the order of the forward pass.

use catelier_adapters::ModuleInfo;

use crate::models::config::TextEncoderConfig;
use crate::models::files::Weights;
use crate::models::shapes::{self, Bias, LayerShape, LinearShape, MatrixShape, NormShape, TensorShape};

/// All layers of a text encoder (`CLIPTextModel`, or `CLIPTextModelWithProjection`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextEncoderLayout {
    pub(crate) token_embedding: MatrixShape,
    pub(crate) position_embedding: MatrixShape,
    pub(crate) layers: Vec<TextLayerLayout>,
    pub(crate) final_layer_norm: NormShape,
    /// The projection of the pooled prompt, which a `CLIPTextModel` lacks.
    pub(crate) text_projection: MatrixShape,
    /// Whether the configuration names a model with the projection.
    projects: bool,
}

/// Causal self-attention and a feed-forward layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextLayerLayout {
    pub(crate) layer_norm1: NormShape,
    pub(crate) q_proj: LinearShape,
    pub(crate) k_proj: LinearShape,
    pub(crate) v_proj: LinearShape,
    pub(crate) out_proj: LinearShape,
    pub(crate) layer_norm2: NormShape,
    pub(crate) fc1: LinearShape,
    pub(crate) fc2: LinearShape,
}

/// First part of most tensor names, which some files lack.
pub(super) const PREFIX: &str = "text_model";

/// Whether the names of `weights` begin with the [`PREFIX`].
pub(super) fn is_prefixed(weights: &Weights) -> bool {
    weights.contains(&format!("{PREFIX}.final_layer_norm.weight"))
}

impl TextEncoderLayout {
    /// The structure for `config` in the folder `component`: `text_encoder` or `text_encoder_2`.
    pub(crate) fn new(component: &str, config: &TextEncoderConfig) -> Self {
        let (model, width) = (format!("{component}.text_model"), config.hidden_size);
        let embedding = |name: &str, rows| MatrixShape::new(&format!("{model}.embeddings"), name, rows, width);
        let layer = |index| TextLayerLayout::new(&format!("{model}.encoder.layers.{index}"), config);
        Self {
            token_embedding: embedding("token_embedding", config.vocab_size),
            position_embedding: embedding("position_embedding", config.max_position_embeddings),
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            final_layer_norm: NormShape::new(&model, "final_layer_norm", width),
            text_projection: MatrixShape::new(component, "text_projection", config.projection_dim, width),
            projects: config.projects(),
        }
    }

    /// Every linear layer that an adapter can change, in the order of the forward pass.
    pub(crate) fn modules(&self) -> Vec<ModuleInfo> {
        shapes::modules(&self.layers())
    }

    /// All tensors.
    pub(crate) fn tensors(&self) -> Vec<TensorShape> {
        shapes::tensors(&self.layers())
    }

    /// All tensors under the names that `weights` has, which may lack the [`PREFIX`]; with the projection if `weights`
    /// has one.
    pub(crate) fn tensors_in(&self, weights: &Weights) -> Vec<TensorShape> {
        let projects = weights.contains("text_projection.weight");
        let tensors = Self { projects, ..self.clone() }.tensors();
        let cut = |tensor: TensorShape| match tensor.name.strip_prefix("text_model.") {
            Some(name) => TensorShape { name: name.into(), ..tensor },
            None => tensor,
        };
        if is_prefixed(weights) { tensors } else { tensors.into_iter().map(cut).collect() }
    }

    /// All layers, in the order of the forward pass.
    fn layers(&self) -> Vec<LayerShape<'_>> {
        let mut layers = [&self.token_embedding, &self.position_embedding].map(LayerShape::Matrix).to_vec();
        layers.extend(self.layers.iter().flat_map(TextLayerLayout::layers));
        layers.push(LayerShape::Norm(&self.final_layer_norm));
        layers.extend(self.projects.then_some(LayerShape::Matrix(&self.text_projection)));
        layers
    }
}

impl TextLayerLayout {
    fn new(path: &str, config: &TextEncoderConfig) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |name: &str, inputs, outputs| LinearShape::new(path, name, inputs, outputs, Bias::With);
        Self {
            layer_norm1: NormShape::new(path, "layer_norm1", width),
            q_proj: linear("self_attn.q_proj", width, width),
            k_proj: linear("self_attn.k_proj", width, width),
            v_proj: linear("self_attn.v_proj", width, width),
            out_proj: linear("self_attn.out_proj", width, width),
            layer_norm2: NormShape::new(path, "layer_norm2", width),
            fc1: linear("mlp.fc1", width, inner),
            fc2: linear("mlp.fc2", inner, width),
        }
    }

    fn layers(&self) -> [LayerShape<'_>; 8] {
        use LayerShape::{Linear, Norm};
        let attention = [&self.q_proj, &self.k_proj, &self.v_proj, &self.out_proj];
        let [q_proj, k_proj, v_proj, out_proj] = attention.map(Linear);
        let [fc1, fc2] = [&self.fc1, &self.fc2].map(Linear);
        let (norm1, norm2) = (Norm(&self.layer_norm1), Norm(&self.layer_norm2));
        [norm1, q_proj, k_proj, v_proj, out_proj, norm2, fc1, fc2]
    }
}
