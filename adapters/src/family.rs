//! Families of base models, and the prediction types of their UNets.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::module::{ModuleInfo, ModuleKind};

/// A family of base models: adapters of one family have the same modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseFamily {
    /// Stable Diffusion 1.x: the transformers' projections are 1x1 convolutions.
    Sd1,
    /// Stable Diffusion 2.x: the transformers' projections are linear layers.
    Sd2,
    /// Stable Diffusion XL: the UNet also takes a pooled prompt and image sizes.
    Sdxl,
}

/// The prediction type of a base model's UNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prediction {
    /// The noise that was added to the latent.
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The velocity `sqrt(a) noise - sqrt(1 - a) z_0` (Salimans and Ho 2022, arXiv 2202.00512).
    #[serde(rename = "v_prediction")]
    Velocity,
}

impl BaseFamily {
    /// The family of a base model with these modules, for any size of the model. If the list lacks the transformers'
    /// projections, the width of the text context decides.
    pub fn of_modules(modules: &[ModuleInfo]) -> Option<Self> {
        if modules.iter().any(|module| module.path.starts_with("unet.add_embedding.")) {
            return Some(Self::Sdxl);
        }
        match modules.iter().find(|module| module.path.ends_with(".proj_in")).map(|module| module.kind) {
            Some(ModuleKind::Conv2d { .. }) => Some(Self::Sd1),
            Some(ModuleKind::Linear { .. }) => Some(Self::Sd2),
            None => modules.iter().find_map(Self::of_context),
        }
    }

    fn of_context(module: &ModuleInfo) -> Option<Self> {
        match module.kind {
            ModuleKind::Linear { in_features, .. } if takes_context(&module.path) => {
                Self::of_context_width(in_features)
            }
            _ => None,
        }
    }

    /// The family whose full-size models have a text context of this width: 768, 1024 or 2048.
    pub fn of_context_width(width: usize) -> Option<Self> {
        match width {
            768 => Some(Self::Sd1),
            1024 => Some(Self::Sd2),
            2048 => Some(Self::Sdxl),
            _ => None,
        }
    }

    /// The family named by `ss_base_model_version` or `modelspec.architecture`, in any spelling that trainers use.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let any = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        if any(&["sdxl", "diffusion-xl"]) {
            Some(Self::Sdxl)
        } else if any(&["sd_v2", "sd_2", "diffusion-v2"]) {
            Some(Self::Sd2)
        } else if any(&["sd_v1", "sd_1", "diffusion-v1"]) {
            Some(Self::Sd1)
        } else {
            None
        }
    }

    /// Its short name, as in JSON: `sd1`, `sd2` or `sdxl`.
    pub fn id(self) -> &'static str {
        match self {
            Self::Sd1 => "sd1",
            Self::Sd2 => "sd2",
            Self::Sdxl => "sdxl",
        }
    }
}

impl Prediction {
    /// Its name in `modelspec.prediction_type`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::Velocity => "v",
        }
    }

    /// The prediction that `modelspec.prediction_type` names.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name {
            "epsilon" => Some(Self::Epsilon),
            "v" | "v_prediction" | "velocity" => Some(Self::Velocity),
            _ => None,
        }
    }
}

/// Whether a layer of this name, dotted or underscored, takes the text context as input.
pub(crate) fn takes_context(name: &str) -> bool {
    ["attn2.to_k", "attn2.to_v", "attn2_to_k", "attn2_to_v"].iter().any(|end| name.ends_with(end))
}

impl fmt::Display for BaseFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sd1 => "Stable Diffusion 1.x",
            Self::Sd2 => "Stable Diffusion 2.x",
            Self::Sdxl => "Stable Diffusion XL",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trainers_names_are_understood() {
        let family = BaseFamily::of_name;
        assert_eq!(family("sd_v1"), Some(BaseFamily::Sd1));
        assert_eq!(family("sd_v2_v"), Some(BaseFamily::Sd2));
        assert_eq!(family("sd_1.5"), Some(BaseFamily::Sd1));
        assert_eq!(family("stable-diffusion-xl-v1-base/lora"), Some(BaseFamily::Sdxl));
        assert_eq!(family("flux1"), None);
    }

    #[test]
    fn a_base_of_any_size_is_recognised_by_its_layers() {
        let module = |path: &str, kind| ModuleInfo { path: path.to_owned(), kind };
        let linear = ModuleKind::Linear { in_features: 24, out_features: 24 };
        let conv = ModuleKind::Conv2d { in_channels: 24, out_channels: 24, kernel: 1, stride: 1, padding: 0 };
        let (attention, projection) = ("unet.a.attn2.to_k", "unet.a.proj_in");
        let of = BaseFamily::of_modules;
        assert_eq!(of(&[module(attention, linear), module(projection, conv)]), Some(BaseFamily::Sd1));
        assert_eq!(of(&[module(attention, linear), module(projection, linear)]), Some(BaseFamily::Sd2));
        let added = module("unet.add_embedding.linear_1", linear);
        assert_eq!(of(&[module(projection, linear), added]), Some(BaseFamily::Sdxl));
        assert_eq!(of(&[module(attention, linear)]), None);
        let wide = ModuleKind::Linear { in_features: 1024, out_features: 320 };
        assert_eq!(of(&[module("unet.a.attn1.to_k", linear), module(attention, wide)]), Some(BaseFamily::Sd2));
    }
}
