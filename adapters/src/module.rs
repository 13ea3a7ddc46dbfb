//! The modules of a base model that an adapter can change, and their paths.

use std::fmt;

use catelier_numerics::noise::fnv1a;
use serde::{Deserialize, Serialize};

/// One linear layer or convolution of a base model, as the base itself lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// Component and diffusers module path, for example
    /// `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`.
    pub path: String,
    /// The operation of the module, with its sizes.
    pub kind: ModuleKind,
}

/// The operation of a module; it determines the shapes of the low-rank factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModuleKind {
    /// `weight: [out_features, in_features]`.
    Linear {
        /// Width of the input.
        in_features: usize,
        /// Width of the output.
        out_features: usize,
    },
    /// `weight: [out_channels, in_channels, kernel, kernel]`.
    Conv2d {
        /// Channels of the input.
        in_channels: usize,
        /// Channels of the output.
        out_channels: usize,
        /// Side of the square kernel, in pixels.
        kernel: usize,
        /// Stride in both directions.
        stride: usize,
        /// Zero padding on all four sides.
        padding: usize,
    },
}

impl ModuleKind {
    /// Shape of `down` at this rank: `[rank, in]` or `[rank, in, kernel, kernel]`.
    pub fn down_shape(&self, rank: usize) -> Vec<usize> {
        match *self {
            Self::Linear { in_features, .. } => vec![rank, in_features],
            Self::Conv2d { in_channels, kernel, .. } => vec![rank, in_channels, kernel, kernel],
        }
    }

    /// Shape of `up` at this rank: `[out, rank]` or `[out, rank, 1, 1]`.
    pub fn up_shape(&self, rank: usize) -> Vec<usize> {
        match *self {
            Self::Linear { out_features, .. } => vec![out_features, rank],
            Self::Conv2d { out_channels, .. } => vec![out_channels, rank, 1, 1],
        }
    }

    /// Number of input values that one output value depends on.
    pub fn fan_in(&self) -> usize {
        self.down_shape(1).iter().product()
    }
}

/// The part of a base model that a module belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The denoising network.
    Unet,
    /// The only text encoder of SD 1.x and 2.x, the first of SDXL.
    TextEncoder,
    /// The second text encoder of SDXL.
    #[serde(rename = "text_encoder_2")]
    TextEncoder2,
}

impl Component {
    /// Every component, in the order of module paths.
    pub const ALL: [Self; 3] = [Self::Unet, Self::TextEncoder, Self::TextEncoder2];

    /// First segment of the component's module paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }

    /// Splits a module path into its component and the path inside it.
    pub fn of_path(path: &str) -> Option<(Self, &str)> {
        let (first, inside) = path.split_once('.')?;
        let component = Self::ALL.into_iter().find(|c| c.name() == first)?;
        Some((component, inside))
    }

    /// The module path of `inside`, a path within this component.
    pub fn path(self, inside: &str) -> String {
        format!("{}.{inside}", self.name())
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether `path` is `prefix` or lies below it. Every path lies below the empty prefix.
pub(crate) fn is_under(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('.');
    match path.strip_prefix(prefix) {
        Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('.'),
        None => false,
    }
}

/// The hash (64-bit FNV-1a) of a path, which is the index of the module's random stream. A module's random values
/// therefore depend on its path alone, not on the other adapted modules.
pub(crate) fn path_number(path: &str) -> u64 {
    fnv1a(path.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_at_a_dot() {
        assert!(is_under("unet.mid_block.attentions.0", "unet.mid_block"));
        assert!(is_under("unet.mid_block", "unet.mid_block."));
        assert!(!is_under("unet.down_blocks.10", "unet.down_blocks.1"));
        assert!(is_under("unet.conv_in", ""));
    }

    #[test]
    fn a_path_splits_into_component_and_rest() {
        assert_eq!(
            Component::of_path("text_encoder_2.text_model.encoder"),
            Some((Component::TextEncoder2, "text_model.encoder"))
        );
        assert_eq!(Component::of_path("vae.decoder"), None);
    }

    #[test]
    fn a_convolution_has_a_four_dimensional_pair_of_factors() {
        let kind = ModuleKind::Conv2d { in_channels: 3, out_channels: 8, kernel: 3, stride: 2, padding: 1 };
        assert_eq!(kind.down_shape(4), [4, 3, 3, 3]);
        assert_eq!(kind.up_shape(4), [8, 4, 1, 1]);
        assert_eq!(kind.fan_in(), 27);
    }
}
