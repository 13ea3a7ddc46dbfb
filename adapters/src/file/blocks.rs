//! Names of UNet modules in the original Stable Diffusion code, which kohya uses for SDXL.
//!
//! That code numbers the residual layers of the downward path as `input_blocks` and of the upward path as
//! `output_blocks`. Within a block, `0` is the residual block and `1` the attention. A downsampler is a block of its
//! own; an upsampler is the last part of its block.

use crate::module::{Component, ModuleInfo};

/// Number of residual layers in each block of a UNet; the numbers of the blocks follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockCount {
    /// Residual layers in each block of the downward path; the upward path has one more.
    pub(crate) layers_per_block: usize,
}

impl Default for BlockCount {
    /// Two, as in every published Stable Diffusion.
    fn default() -> Self {
        Self { layers_per_block: 2 }
    }
}

impl BlockCount {
    /// Counts the layers of a base model's blocks.
    pub(crate) fn of(modules: &[ModuleInfo]) -> Self {
        let layers = modules.iter().filter_map(|module| {
            let (Component::Unet, inside) = Component::of_path(&module.path)? else {
                return None;
            };
            let parts: Vec<&str> = inside.split('.').collect();
            match parts[..] {
                ["down_blocks", _, "resnets" | "attentions", layer, ..] => Some(layer.parse::<usize>().ok()? + 1),
                _ => None,
            }
        });
        match layers.max() {
            Some(layers_per_block) => Self { layers_per_block },
            None => Self::default(),
        }
    }

    /// The original name, underscored, of the UNet module with the path `inside` the UNet. The index of an upsampler
    /// depends on whether its block has attentions.
    pub(crate) fn original_name(&self, inside: &str, block_has_attention: bool) -> Option<String> {
        let parts: Vec<&str> = inside.split('.').collect();
        let (block, rest): (String, &[&str]) = match parts[..] {
            ["down_blocks", ref rest @ ..] => (self.down(rest)?, &parts[4..]),
            ["up_blocks", ref rest @ ..] => (self.up(rest, block_has_attention)?, &parts[4..]),
            ["mid_block", part, index, ..] => (middle(part, index)?, &parts[3..]),
            _ => return outer(inside).map(str::to_owned),
        };
        let rest = match parts.iter().find(|part| **part == "resnets" || **part == "downsamplers") {
            Some(&"resnets") => residual_part(rest.first()?)?.to_owned(),
            Some(_) => "op".to_owned(),
            None => rest.join("_"),
        };
        Some(format!("{block}_{rest}"))
    }

    fn down(&self, rest: &[&str]) -> Option<String> {
        let [block, part, layer, _, ..] = rest else {
            return None;
        };
        let (block, layer): (usize, usize) = (block.parse().ok()?, layer.parse().ok()?);
        let first = 1 + block * (self.layers_per_block + 1);
        match *part {
            "resnets" => Some(format!("input_blocks_{}_0", first + layer)),
            "attentions" => Some(format!("input_blocks_{}_1", first + layer)),
            "downsamplers" => Some(format!("input_blocks_{}_0", first + self.layers_per_block)),
            _ => None,
        }
    }

    fn up(&self, rest: &[&str], has_attention: bool) -> Option<String> {
        let [block, part, layer, _, ..] = rest else {
            return None;
        };
        let (block, layer): (usize, usize) = (block.parse().ok()?, layer.parse().ok()?);
        let first = block * (self.layers_per_block + 1);
        match *part {
            "resnets" => Some(format!("output_blocks_{}_0", first + layer)),
            "attentions" => Some(format!("output_blocks_{}_1", first + layer)),
            "upsamplers" => {
                let last = first + self.layers_per_block;
                Some(format!("output_blocks_{last}_{}", 1 + usize::from(has_attention)))
            }
            _ => None,
        }
    }
}

fn middle(part: &str, index: &str) -> Option<String> {
    match (part, index) {
        ("resnets", "0") => Some("middle_block_0".to_owned()),
        ("attentions", "0") => Some("middle_block_1".to_owned()),
        ("resnets", "1") => Some("middle_block_2".to_owned()),
        _ => None,
    }
}

fn residual_part(name: &str) -> Option<&'static str> {
    match name {
        "conv1" => Some("in_layers_2"),
        "time_emb_proj" => Some("emb_layers_1"),
        "conv2" => Some("out_layers_3"),
        "conv_shortcut" => Some("skip_connection"),
        _ => None,
    }
}

fn outer(inside: &str) -> Option<&'static str> {
    match inside {
        "conv_in" => Some("input_blocks_0_0"),
        "conv_out" => Some("out_2"),
        "time_embedding.linear_1" => Some("time_embed_0"),
        "time_embedding.linear_2" => Some("time_embed_2"),
        "add_embedding.linear_1" => Some("label_emb_0_0"),
        "add_embedding.linear_2" => Some("label_emb_0_2"),
        _ => None,
    }
}

/// The prefix of the block that a path inside the UNet lies in, `up_blocks.0`.
pub(crate) fn block_of(inside: &str) -> &str {
    let mut dots = inside.match_indices('.').map(|(at, _)| at);
    dots.nth(1).map_or(inside, |end| &inside[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_named(inside: &str, original: &str) {
        let name = BlockCount::default().original_name(inside, true);
        assert_eq!(name.as_deref(), Some(original));
    }

    #[test]
    fn sdxl_names_are_counted_as_kohya_counts_them() {
        assert_named(
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        );
        assert_named("down_blocks.2.attentions.1.proj_in", "input_blocks_8_1_proj_in");
        assert_named("down_blocks.0.resnets.1.conv1", "input_blocks_2_0_in_layers_2");
        assert_named("down_blocks.0.downsamplers.0.conv", "input_blocks_3_0_op");
        assert_named("mid_block.attentions.0.proj_out", "middle_block_1_proj_out");
        assert_named("mid_block.resnets.1.time_emb_proj", "middle_block_2_emb_layers_1");
        assert_named(
            "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.0.proj",
            "output_blocks_2_1_transformer_blocks_9_ff_net_0_proj",
        );
        assert_named("up_blocks.2.resnets.0.conv_shortcut", "output_blocks_6_0_skip_connection");
        assert_named("up_blocks.1.upsamplers.0.conv", "output_blocks_5_2_conv");
        assert_named("conv_out", "out_2");
        assert_named("add_embedding.linear_2", "label_emb_0_2");
    }

    #[test]
    fn an_upsampler_moves_up_where_there_is_no_attention() {
        let name = BlockCount::default().original_name("up_blocks.0.upsamplers.0.conv", false);
        assert_eq!(name.as_deref(), Some("output_blocks_2_1_conv"));
    }

    #[test]
    fn unknown_modules_have_no_original_name() {
        let count = BlockCount::default();
        assert_eq!(count.original_name("down_blocks.1", true), None);
        assert_eq!(count.original_name("down_blocks.x.resnets.0.conv1", true), None);
        assert_eq!(count.original_name("controlnet.a.b.c.d", true), None);
    }

    #[test]
    fn a_path_lies_in_its_block() {
        assert_eq!(block_of("up_blocks.0.attentions.2.proj_in"), "up_blocks.0");
        assert_eq!(block_of("conv_in"), "conv_in");
    }
}
