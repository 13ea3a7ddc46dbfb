//! `unet/config.json`.

use serde::{Deserialize, Serialize};

use super::check::{Check, MOST_LEVELS, PerLevel, Rule, Table};
use crate::error::Result;
use crate::models::ImageSizes;
use crate::models::files::ModelFiles;

/// `unet/config.json` of a `UNet2DConditionModel`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct UNetConfig {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Height and width of the latents in training, if the file has them.
    pub sample_size: Option<usize>,
    /// The levels, from the finest to the coarsest.
    pub levels: Vec<UNetLevel>,
    /// Whether each level on the way up has attention, coarsest level first.
    pub up_attention: Vec<bool>,
    /// Groups of every group normalisation.
    pub norm_groups: usize,
    /// Epsilon of the residual blocks' group normalisation.
    pub norm_eps: f64,
    /// Whether the transformers' `proj_in` and `proj_out` are linear (SD 2, SDXL) or 1x1 convolutions (SD 1).
    pub linear_projection: bool,
    /// Side of the first convolution's kernel.
    pub conv_in_kernel: usize,
    /// Side of the last convolution's kernel.
    pub conv_out_kernel: usize,
    /// The sinusoidal timestep embedding.
    pub timestep: TimestepConfig,
    /// SDXL's added embedding (`text_time`).
    pub added: Option<AddedEmbeddingConfig>,
}

/// One level of the UNet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UNetLevel {
    /// Channels.
    pub channels: usize,
    /// Residual blocks on the way down; the way up has one more.
    pub layers: usize,
    /// Whether the level has attention on the way down.
    pub attention: bool,
    /// Attention heads (`attention_head_dim`, which despite its name counts heads).
    pub heads: usize,
    /// Transformer blocks in each attention.
    pub transformer_layers: usize,
    /// Width of the text context.
    pub context_width: usize,
}

/// The sinusoidal embedding of timesteps.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TimestepConfig {
    /// Width of the time embedding.
    pub width: usize,
    /// Whether cosines come before sines.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies in the exponent's denominator.
    pub freq_shift: f64,
}

/// Widths of SDXL's added embedding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AddedEmbeddingConfig {
    /// Sinusoidal width of each of the six image sizes.
    pub time_width: usize,
    /// Width of the pooled prompt and the six embedded sizes together.
    pub input_width: usize,
}

/// The keys of the file; missing keys take diffusers' defaults.
#[derive(Deserialize)]
#[serde(default)]
struct UNetFile {
    in_channels: usize,
    out_channels: usize,
    sample_size: Option<usize>,
    block_out_channels: Vec<usize>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    layers_per_block: PerLevel,
    attention_head_dim: PerLevel,
    transformer_layers_per_block: PerLevel,
    cross_attention_dim: PerLevel,
    norm_num_groups: usize,
    norm_eps: f64,
    use_linear_projection: bool,
    conv_in_kernel: usize,
    conv_out_kernel: usize,
    time_embedding_dim: Option<usize>,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    addition_embed_type: Option<String>,
    addition_time_embed_dim: Option<usize>,
    projection_class_embeddings_input_dim: Option<usize>,
}

impl Default for UNetFile {
    fn default() -> Self {
        let blocks =
            |plain: &'static str, attention: &'static str| [attention, attention, attention, plain].into_iter();
        Self {
            in_channels: 4,
            out_channels: 4,
            sample_size: None,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_block_types: blocks("DownBlock2D", "CrossAttnDownBlock2D").map(String::from).collect(),
            up_block_types: blocks("UpBlock2D", "CrossAttnUpBlock2D").rev().map(String::from).collect(),
            layers_per_block: PerLevel::One(2),
            attention_head_dim: PerLevel::One(8),
            transformer_layers_per_block: PerLevel::One(1),
            cross_attention_dim: PerLevel::One(1280),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            use_linear_projection: false,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            time_embedding_dim: None,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
        }
    }
}

const CHANNELS: Rule = Rule::Whole(1, 16_384);
const KERNEL: Rule = Rule::OneOf(&["3", "1", "5", "7"]);

/// The keys of a `UNet2DConditionModel`.
pub(super) const UNET: &Table = &[
    ("_class_name", Rule::OneOf(&["\"UNet2DConditionModel\""])),
    ("_diffusers_version", Rule::Irrelevant),
    ("_name_or_path", Rule::Irrelevant),
    ("act_fn", Rule::OneOf(&["\"silu\"", "\"swish\""])),
    ("addition_embed_type", Rule::OneOf(&["null", "\"text_time\""])),
    // Only of other types of added embeddings.
    ("addition_embed_type_num_heads", Rule::Irrelevant),
    ("addition_time_embed_dim", Rule::OrNull(&Rule::Whole(1, 16_384))),
    ("attention_head_dim", Rule::PerLevel(&Rule::Whole(1, 1024))),
    ("attention_type", Rule::OneOf(&["\"default\""])),
    ("block_out_channels", Rule::List(MOST_LEVELS, &CHANNELS)),
    ("center_input_sample", Rule::OneOf(&["false"])),
    ("class_embed_type", Rule::OneOf(&["null"])),
    ("class_embeddings_concat", Rule::OneOf(&["false"])),
    ("conv_in_kernel", KERNEL),
    ("conv_out_kernel", KERNEL),
    ("cross_attention_dim", Rule::PerLevel(&CHANNELS)),
    ("cross_attention_norm", Rule::OneOf(&["null"])),
    ("down_block_types", Rule::List(MOST_LEVELS, &Rule::OneOf(&["\"DownBlock2D\"", "\"CrossAttnDownBlock2D\""]))),
    ("downsample_padding", Rule::OneOf(&["1"])),
    // Not active outside of the base's own training.
    ("dropout", Rule::Irrelevant),
    ("dual_cross_attention", Rule::OneOf(&["false"])),
    ("encoder_hid_dim", Rule::OneOf(&["null"])),
    ("encoder_hid_dim_type", Rule::OneOf(&["null"])),
    ("flip_sin_to_cos", Rule::Flag),
    ("freq_shift", Rule::Real(0.0, 1.0)),
    ("in_channels", CHANNELS),
    ("layers_per_block", Rule::PerLevel(&Rule::Whole(1, 8))),
    ("mid_block_only_cross_attention", Rule::OneOf(&["null", "false"])),
    ("mid_block_scale_factor", Rule::OneOf(&["1"])),
    ("mid_block_type", Rule::OneOf(&["\"UNetMidBlock2DCrossAttn\""])),
    ("norm_eps", Rule::Real(0.0, 1.0)),
    ("norm_num_groups", CHANNELS),
    ("num_attention_heads", Rule::OneOf(&["null"])),
    ("num_class_embeds", Rule::OneOf(&["null"])),
    ("only_cross_attention", Rule::OneOf(&["false"])),
    ("out_channels", CHANNELS),
    ("projection_class_embeddings_input_dim", Rule::OrNull(&Rule::Whole(1, 131_072))),
    ("resnet_out_scale_factor", Rule::OneOf(&["1"])),
    ("resnet_skip_time_act", Rule::OneOf(&["false"])),
    ("resnet_time_scale_shift", Rule::OneOf(&["\"default\""])),
    ("reverse_transformer_layers_per_block", Rule::OneOf(&["null"])),
    ("sample_size", Rule::OrNull(&Rule::Whole(1, 256))),
    ("time_cond_proj_dim", Rule::OneOf(&["null"])),
    ("time_embedding_act_fn", Rule::OneOf(&["null"])),
    ("time_embedding_dim", Rule::OrNull(&Rule::Whole(1, 65_536))),
    ("time_embedding_type", Rule::OneOf(&["\"positional\""])),
    ("timestep_post_act", Rule::OneOf(&["null"])),
    // 0 in the levels without attention of some models.
    ("transformer_layers_per_block", Rule::PerLevel(&Rule::Whole(0, 16))),
    ("up_block_types", Rule::List(MOST_LEVELS, &Rule::OneOf(&["\"UpBlock2D\"", "\"CrossAttnUpBlock2D\""]))),
    // Attention is always summed in f32.
    ("upcast_attention", Rule::Irrelevant),
    ("use_linear_projection", Rule::Flag),
];

impl UNetConfig {
    /// Reads `unet/config.json`.
    ///
    /// # Errors
    /// [`crate::Error::InvalidConfig`], or [`crate::Error::UnsupportedSettings`] with every key that is not supported.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let mut check = Check::new("unet/config.json", files, UNET)?;
        let file: UNetFile = check.parse()?;
        let config = Self::from_file(&file, &mut check);
        check.finish()?;
        Ok(config)
    }

    fn from_file(file: &UNetFile, check: &mut Check) -> Self {
        let levels = unet_levels(file, check);
        let up_attention = file.up_block_types.iter().map(|kind| kind == "CrossAttnUpBlock2D").collect();
        check.count("up_block_types", file.up_block_types.len(), levels.len());
        let first = file.block_out_channels.first().copied().unwrap_or(0);
        Self {
            in_channels: file.in_channels,
            out_channels: file.out_channels,
            sample_size: file.sample_size,
            levels,
            up_attention,
            norm_groups: file.norm_num_groups,
            norm_eps: file.norm_eps,
            linear_projection: file.use_linear_projection,
            conv_in_kernel: file.conv_in_kernel,
            conv_out_kernel: file.conv_out_kernel,
            timestep: TimestepConfig {
                width: file.time_embedding_dim.unwrap_or(first.saturating_mul(4)),
                flip_sin_to_cos: file.flip_sin_to_cos,
                freq_shift: file.freq_shift,
            },
            added: added_embedding(file, check),
        }
    }

    /// Width of the text context.
    pub fn context_width(&self) -> usize {
        self.levels.last().map_or(0, |level| level.context_width)
    }
}

fn unet_levels(file: &UNetFile, check: &mut Check) -> Vec<UNetLevel> {
    let channels = &file.block_out_channels;
    let count = channels.len();
    check.count("down_block_types", file.down_block_types.len(), count);
    let layers = check.expand("layers_per_block", &file.layers_per_block, count);
    let heads = check.expand("attention_head_dim", &file.attention_head_dim, count);
    let transformer_layers = check.expand("transformer_layers_per_block", &file.transformer_layers_per_block, count);
    let context_widths = check.expand("cross_attention_dim", &file.cross_attention_dim, count);
    for &width in channels {
        check.divides("norm_num_groups", file.norm_num_groups, width);
    }
    for (&heads, &width) in heads.iter().zip(channels) {
        check.divides("attention_head_dim", heads, width);
    }
    (0..count)
        .map(|level| UNetLevel {
            channels: channels[level],
            layers: layers[level],
            attention: file.down_block_types.get(level).is_some_and(|kind| kind == "CrossAttnDownBlock2D"),
            heads: heads[level],
            transformer_layers: transformer_layers[level],
            context_width: context_widths[level],
        })
        .collect()
}

fn added_embedding(file: &UNetFile, check: &mut Check) -> Option<AddedEmbeddingConfig> {
    file.addition_embed_type.as_ref()?;
    let (Some(time_width), Some(input_width)) =
        (file.addition_time_embed_dim, file.projection_class_embeddings_input_dim)
    else {
        check.refuse(
            "addition_embed_type",
            "\"text_time\"",
            "`text_time` together with `addition_time_embed_dim` and `projection_class_embeddings_input_dim`",
        );
        return None;
    };
    let sizes = time_width.saturating_mul(ImageSizes::COUNT);
    if input_width <= sizes {
        check.refuse(
            "projection_class_embeddings_input_dim",
            input_width,
            format!("more than {sizes}, the image sizes"),
        );
    }
    Some(AddedEmbeddingConfig { time_width, input_width })
}
