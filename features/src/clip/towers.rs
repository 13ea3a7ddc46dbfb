//! CLIP's two towers, made of the transformer blocks of candle-transformers.
//!
//! Its `clip` module fixes QuickGELU and an epsilon of 1e-5. Its `chinese_clip` module has the same blocks under the
//! same tensor names, takes both as settings, and has an encoder that accepts a mask. That module therefore serves the
//! image and text towers of OpenAI's and OpenCLIP's models, with a causal mask for texts.

use candle_core::{D, Result as CandleResult, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear_no_bias};
use candle_transformers::models::chinese_clip::{Activation as BlockActivation, EncoderConfig, vision_model};
use candle_transformers::models::siglip;
use catelier_numerics::ops::FrozenLayerNorm;
use vision_model::{ChineseClipVisionConfig, ChineseClipVisionEncoder, ChineseClipVisionTransformer};

use super::config::{Activation, ClipConfig, TextConfig, VisionConfig};

/// The end token in old configuration files, which is not the tokenizer's end token.
const LEGACY_END: u32 = 2;

/// A tower maps pixels or ids to features.
pub(super) type Tower = Box<dyn Module + Send + Sync>;

/// An image tower, which maps pixels to features and may show its tokens.
pub(super) type ImageSide = Box<dyn Tokens + Send + Sync>;

/// An image tower whose tokens can be seen.
pub(super) trait Tokens: Module {
    /// Number of blocks whose tokens can be seen; none where the tower keeps them to itself.
    fn blocks(&self) -> usize;

    /// The tokens of the image's patches after block `block`, counted from 1: pixels `[n, 3, side, side]` to
    /// `[n, patches, width]`.
    fn tokens(&self, pixels: &Tensor, block: usize) -> CandleResult<Tensor>;
}

/// candle-transformers shows no tokens of SigLIP's tower.
impl Tokens for siglip::VisionModel {
    fn blocks(&self) -> usize {
        0
    }

    fn tokens(&self, _: &Tensor, block: usize) -> CandleResult<Tensor> {
        candle_core::bail!("the tower shows no tokens, and none of block {block}")
    }
}

/// Scales each row to length 1, as transformers' `CLIPModel` does.
pub(super) fn unit_length(features: &Tensor) -> CandleResult<Tensor> {
    features.broadcast_div(&features.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

/// Pixels `[n, 3, side, side]` to the class token's projection, `[n, projection_dim]`.
pub(super) struct ImageTower {
    transformer: ChineseClipVisionTransformer,
    projection: Linear,
    blocks: usize,
}

impl ImageTower {
    pub(super) fn load(weights: &VarBuilder, config: &ClipConfig) -> CandleResult<Self> {
        let vision = &config.vision;
        Ok(Self {
            transformer: ChineseClipVisionTransformer::new(weights.pp("vision_model"), &vision.blocks())?,
            projection: linear_no_bias(vision.hidden_size, config.projection_dim, weights.pp("visual_projection"))?,
            blocks: vision.num_hidden_layers,
        })
    }
}

impl Module for ImageTower {
    fn forward(&self, pixels: &Tensor) -> CandleResult<Tensor> {
        pixels.apply(&self.transformer)?.apply(&self.projection)
    }
}

impl Tokens for ImageTower {
    fn blocks(&self) -> usize {
        self.blocks
    }

    /// Without the class token, which comes first.
    fn tokens(&self, pixels: &Tensor, block: usize) -> CandleResult<Tensor> {
        let hidden = self.transformer.output_hidden_states(pixels)?;
        let tokens = &hidden[block - 1];
        tokens.narrow(1, 1, tokens.dim(1)? - 1)
    }
}

/// Ids `[n, tokens]` to the end token's projection, `[n, projection_dim]`.
pub(super) struct TextTower {
    tokens: Tensor,
    positions: Tensor,
    encoder: ChineseClipVisionEncoder,
    norm: FrozenLayerNorm,
    projection: Linear,
    end: u32,
}

impl TextTower {
    pub(super) fn load(weights: &VarBuilder, config: &ClipConfig) -> CandleResult<Self> {
        let text = &config.text;
        let hidden = text.hidden_size;
        let model = weights.pp("text_model");
        let norm = model.pp("final_layer_norm");
        Ok(Self {
            tokens: model.get((text.vocab_size, hidden), "embeddings.token_embedding.weight")?,
            positions: model.get((text.max_position_embeddings, hidden), "embeddings.position_embedding.weight")?,
            encoder: ChineseClipVisionEncoder::new(model.pp("encoder"), &EncoderConfig::Vision(text.blocks()))?,
            norm: FrozenLayerNorm::new(&norm.get(hidden, "weight")?, &norm.get(hidden, "bias")?, text.layer_norm_eps)?,
            projection: linear_no_bias(hidden, config.projection_dim, weights.pp("text_projection"))?,
            end: text.eos_token_id,
        })
    }

    fn embed(&self, ids: &Tensor) -> CandleResult<Tensor> {
        let (n, length) = ids.dims2()?;
        let tokens = self.tokens.index_select(&ids.flatten_all()?, 0)?;
        tokens.reshape((n, length, ()))?.broadcast_add(&self.positions.narrow(0, 0, length)?)
    }

    fn pool(&self, hidden: &Tensor, ids: &Tensor) -> CandleResult<Tensor> {
        let rows = ids.to_vec2::<u32>()?.into_iter().enumerate();
        let pooled = rows
            .map(|(row, ids)| hidden.get(row)?.get(end_position(&ids, self.end)))
            .collect::<CandleResult<Vec<_>>>()?;
        Tensor::stack(&pooled, 0)
    }
}

impl Module for TextTower {
    fn forward(&self, ids: &Tensor) -> CandleResult<Tensor> {
        let embedded = self.embed(ids)?;
        let mask = causal_mask(embedded.dim(1)?, &embedded)?;
        let hidden = self.encoder.forward(&embedded, Some(&mask))?;
        self.pool(&self.norm.forward(&hidden)?, ids)?.apply(&self.projection)
    }
}

/// The mask added to the attention logits, `[length, length]`: a token attends to itself and the tokens before it.
fn causal_mask(length: usize, like: &Tensor) -> CandleResult<Tensor> {
    let seen = |row: usize, column: usize| if column <= row { 0.0 } else { f32::NEG_INFINITY };
    let mask = (0..length).flat_map(|row| (0..length).map(move |column| seen(row, column))).collect::<Vec<_>>();
    Tensor::from_vec(mask, (length, length), like.device())
}

/// The position of the first end token; for old files, the first position of the highest id.
fn end_position(ids: &[u32], end: u32) -> usize {
    let wanted = match end {
        LEGACY_END => ids.iter().copied().max().unwrap_or(end),
        end => end,
    };
    ids.iter().position(|id| *id == wanted).unwrap_or(0)
}

impl VisionConfig {
    fn blocks(&self) -> ChineseClipVisionConfig {
        ChineseClipVisionConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_channels: self.num_channels,
            image_size: self.image_size,
            patch_size: self.patch_size,
            hidden_act: self.hidden_act.into(),
            layer_norm_eps: self.layer_norm_eps,
            ..ChineseClipVisionConfig::default()
        }
    }
}

impl TextConfig {
    fn blocks(&self) -> ChineseClipVisionConfig {
        ChineseClipVisionConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act.into(),
            layer_norm_eps: self.layer_norm_eps,
            ..ChineseClipVisionConfig::default()
        }
    }
}

impl From<Activation> for BlockActivation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::QuickGelu => Self::QuickGelu,
            Activation::Gelu => Self::Gelu,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use catelier_testkit::close::assert_close;
    use catelier_testkit::golden::Golden;
    use catelier_testkit::tolerance;

    use super::*;
    use crate::clip::ClipFiles;
    use crate::clip::config::ModelConfig;
    use crate::clip::weights::Weights;

    #[test]
    fn golden_image_tower_agrees_before_its_last_norm() {
        let golden = Golden::open();
        let files = ClipFiles::folder(&golden.model("tiny-clip")).unwrap();
        let Ok(ModelConfig::Clip(config)) = ModelConfig::from_json(&files.config) else { panic!("expected CLIP") };
        let weights = Weights::open(files.weights).unwrap();
        let tower = weights.build(&Device::Cpu, |weights| ImageTower::load(&weights, &config)).unwrap();
        let fixture = golden.fixture("clip");
        let pixels = fixture.tensor("pixel_values").to_dtype(DType::F32).unwrap();
        let states = tower.transformer.output_hidden_states(&pixels).unwrap();
        let hidden = &states[config.vision.num_hidden_layers - 1];
        let allowed = tolerance::output(fixture.noise("image_hidden"));
        assert_close("image_hidden", hidden, &fixture.tensor("image_hidden"), allowed);
        let tokens = tower.tokens(&pixels, tower.blocks()).unwrap();
        let expected = fixture.tensor("image_hidden");
        let patches = expected.dim(1).unwrap() - 1;
        assert_close("tokens", &tokens, &expected.narrow(1, 1, patches).unwrap(), allowed);
    }

    #[test]
    fn the_first_end_token_speaks_for_the_text() {
        assert_eq!(end_position(&[10, 3, 99, 99, 99], 99), 2);
    }

    #[test]
    fn old_files_name_no_end_token_so_the_highest_id_counts() {
        assert_eq!(end_position(&[10, 2, 99, 0, 0], LEGACY_END), 2);
    }
}
