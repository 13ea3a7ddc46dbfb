//! Families of base models, told apart by the width of their text context.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::module::{ModuleInfo, ModuleKind};

/// A family of base models whose adapters fit each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseFamily {
    /// Stable Diffusion 1.x: context width 768.
    Sd1,
    /// Stable Diffusion 2.x: context width 1024.
    Sd2,
    /// Stable Diffusion XL: context width 2048.
    Sdxl,
}

impl BaseFamily {
    /// The family whose cross-attention takes a context of this width.
    pub fn of_context_width(width: usize) -> Option<Self> {
        match width {
            768 => Some(Self::Sd1),
            1024 => Some(Self::Sd2),
            2048 => Some(Self::Sdxl),
            _ => None,
        }
    }

    /// The family of a base model, from the width its cross-attention takes; a base of unusual
    /// width is of SDXL's family if it has SDXL's second embedding.
    pub fn of_modules(modules: &[ModuleInfo]) -> Option<Self> {
        let width = modules.iter().find_map(|module| match module.kind {
            ModuleKind::Linear { in_features, .. } if takes_context(&module.path) => {
                Self::of_context_width(in_features)
            }
            _ => None,
        });
        let embeds_size = modules.iter().any(|module| module.path.starts_with("unet.add_embedding."));
        width.or(embeds_size.then_some(Self::Sdxl))
    }

    /// The family named by `ss_base_model_version` or `modelspec.architecture`, in the spellings
    /// that trainers use.
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
}

/// Whether the name, dotted or underscored, is that of a layer fed with the text context.
pub(crate) fn takes_context(name: &str) -> bool {
    ["attn2.to_k", "attn2.to_v", "attn2_to_k", "attn2_to_v"].iter().any(|end| name.ends_with(end))
}

impl fmt::Display for BaseFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sd1 => "Stable Diffusion 1.x (context width 768)",
            Self::Sd2 => "Stable Diffusion 2.x (context width 1024)",
            Self::Sdxl => "Stable Diffusion XL (context width 2048)",
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
    fn a_base_is_recognised_by_its_context_width() {
        let module = |path: &str, in_features| ModuleInfo {
            path: path.to_owned(),
            kind: ModuleKind::Linear { in_features, out_features: 320 },
        };
        let modules = [module("unet.a.attn1.to_k", 768), module("unet.a.attn2.to_k", 1024)];
        assert_eq!(BaseFamily::of_modules(&modules), Some(BaseFamily::Sd2));
        assert_eq!(BaseFamily::of_modules(&modules[..1]), None);
    }
}
