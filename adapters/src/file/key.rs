//! Tensor names of adapter files, parsed into a module name and a role in the module's update.

use super::Format;
use crate::kind::AdapterKind;
use crate::module::Component;

/// The part of a module's update that a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Down,
    Up,
    Alpha,
    /// The magnitudes of a DoRA.
    Magnitude,
    /// A part of a kind that cannot be applied.
    Foreign(AdapterKind),
}

/// A parsed tensor name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    /// The module's name in the file: the tensor name without its ending.
    pub(crate) stem: String,
    pub(crate) role: Role,
    /// The format that uses this ending; `None` for alphas, magnitudes and foreign parts, which several formats share.
    pub(crate) format: Option<Format>,
}

use Format::{Diffusers, Kohya, Peft};
use Role::{Alpha, Down, Foreign, Magnitude, Up};

/// Endings of tensor names. An ending that is the end of another comes after it, since the first match counts.
const ENDINGS: &[(&str, Role, Option<Format>)] = &[
    (".lora_down.weight", Down, Some(Kohya)),
    (".lora_up.weight", Up, Some(Kohya)),
    (".alpha", Alpha, None),
    (".lora.down.weight", Down, Some(Diffusers)),
    (".lora.up.weight", Up, Some(Diffusers)),
    (".lora_linear_layer.down.weight", Down, Some(Diffusers)),
    (".lora_linear_layer.up.weight", Up, Some(Diffusers)),
    ("_lora.down.weight", Down, Some(Diffusers)),
    ("_lora.up.weight", Up, Some(Diffusers)),
    (".lora_A.weight", Down, Some(Peft)),
    (".lora_B.weight", Up, Some(Peft)),
    (".lora_A.default.weight", Down, Some(Peft)),
    (".lora_B.default.weight", Up, Some(Peft)),
    (".dora_scale", Magnitude, None),
    (".lora_magnitude_vector", Magnitude, None),
    (".lora_magnitude_vector.weight", Magnitude, None),
    (".lora_magnitude_vector.default.weight", Magnitude, None),
    (".magnitude", Foreign(AdapterKind::Dora), None),
    (".hada_w1_a", Foreign(AdapterKind::Loha), None),
    (".hada_w1_b", Foreign(AdapterKind::Loha), None),
    (".hada_w2_a", Foreign(AdapterKind::Loha), None),
    (".hada_w2_b", Foreign(AdapterKind::Loha), None),
    (".hada_t1", Foreign(AdapterKind::Loha), None),
    (".hada_t2", Foreign(AdapterKind::Loha), None),
    (".lokr_w1", Foreign(AdapterKind::Lokr), None),
    (".lokr_w1_a", Foreign(AdapterKind::Lokr), None),
    (".lokr_w1_b", Foreign(AdapterKind::Lokr), None),
    (".lokr_w2", Foreign(AdapterKind::Lokr), None),
    (".lokr_w2_a", Foreign(AdapterKind::Lokr), None),
    (".lokr_w2_b", Foreign(AdapterKind::Lokr), None),
    (".lokr_t2", Foreign(AdapterKind::Lokr), None),
    (".oft_blocks", Foreign(AdapterKind::Oft), None),
    (".oft_diag", Foreign(AdapterKind::Oft), None),
    (".oft_R.weight", Foreign(AdapterKind::Oft), None),
    (".oft_r", Foreign(AdapterKind::Oft), None),
    (".oft_s", Foreign(AdapterKind::Oft), None),
    (".boft_R", Foreign(AdapterKind::Oft), None),
    (".boft_s", Foreign(AdapterKind::Oft), None),
    (".a1.weight", Foreign(AdapterKind::Glora), None),
    (".a2.weight", Foreign(AdapterKind::Glora), None),
    (".b1.weight", Foreign(AdapterKind::Glora), None),
    (".b2.weight", Foreign(AdapterKind::Glora), None),
    (".ia3_l", Foreign(AdapterKind::Ia3), None),
    (".on_input", Foreign(AdapterKind::Ia3), None),
    (".lora_mid.weight", Foreign(AdapterKind::TuckerLora), None),
    (".diff", Foreign(AdapterKind::FullDifference), None),
    (".diff_b", Foreign(AdapterKind::FullDifference), None),
    (".w_norm", Foreign(AdapterKind::BiasOrNorm), None),
    (".b_norm", Foreign(AdapterKind::BiasOrNorm), None),
    (".lora_up.bias", Foreign(AdapterKind::BiasOrNorm), None),
    (".lora_B.bias", Foreign(AdapterKind::BiasOrNorm), None),
    (".lora.up.bias", Foreign(AdapterKind::BiasOrNorm), None),
];

/// Whole names of textual inversion tensors.
const EMBEDDINGS: [&str; 4] = ["emb_params", "clip_l", "clip_g", "string_to_param"];

impl Key {
    /// Parses a tensor name; `None` if it is not the name of an adapter's tensor.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        if EMBEDDINGS.contains(&name) {
            return Some(Self { stem: name.to_owned(), role: Foreign(AdapterKind::TextualInversion), format: None });
        }
        let (stem, role, format) =
            ENDINGS.iter().find_map(|(ending, role, format)| Some((name.strip_suffix(ending)?, *role, *format)))?;
        let old_attention = name[stem.len()..].starts_with("_lora.");
        Some(Self { stem: modern_stem(stem, old_attention), role, format })
    }
}

/// The current name of a module. Names of old attention processors (`attn1.processor.to_q_lora`, before diffusers 0.20)
/// are rewritten.
fn modern_stem(stem: &str, old_attention: bool) -> String {
    let stem = stem.replace(".processor.", ".");
    if !old_attention {
        return stem;
    }
    match stem.rsplit_once(".self_attn.to_") {
        Some((layer, "out")) => format!("{layer}.self_attn.out_proj"),
        Some((layer, projection)) => format!("{layer}.self_attn.{projection}_proj"),
        None if stem.ends_with(".to_out") => format!("{stem}.0"),
        None => stem,
    }
}

/// The spelling of a module's name in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling<'a> {
    /// A component prefix and a path with underscores in place of dots.
    Underscored(Component, &'a str),
    /// A path within a component, with dots.
    Dotted(Component, &'a str),
}

/// Prefixes of underscored names. A prefix that starts another comes after it, since the first match counts.
const UNDERSCORED: [(&str, Component); 5] = [
    ("lora_unet_", Component::Unet),
    ("lycoris_", Component::Unet),
    ("lora_te1_", Component::TextEncoder),
    ("lora_te2_", Component::TextEncoder2),
    ("lora_te_", Component::TextEncoder),
];

/// Prefix of a single model's modules in a PEFT file.
pub(crate) const PEFT_PREFIX: &str = "base_model.model.";

/// The component of a stem, and its spelling.
pub(crate) fn spelling(stem: &str) -> Spelling<'_> {
    for (prefix, component) in UNDERSCORED {
        if let Some(rest) = stem.strip_prefix(prefix) {
            return Spelling::Underscored(component, rest);
        }
    }
    let stem = stem.strip_prefix(PEFT_PREFIX).unwrap_or(stem);
    if let Some((component, inside)) = Component::of_path(stem) {
        return Spelling::Dotted(component, inside);
    }
    if stem.starts_with("text_model.") {
        return Spelling::Dotted(Component::TextEncoder, stem);
    }
    Spelling::Dotted(Component::Unet, stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> (String, Role, Option<Format>) {
        let key = Key::parse(name).unwrap();
        (key.stem, key.role, key.format)
    }

    #[test]
    fn every_spelling_of_a_pair_is_read() {
        for (name, format) in [
            ("a.to_q.lora_down.weight", Kohya),
            ("a.to_q.lora.down.weight", Diffusers),
            ("a.to_q.lora_linear_layer.down.weight", Diffusers),
            ("a.processor.to_q_lora.down.weight", Diffusers),
            ("a.to_q.lora_A.weight", Peft),
            ("a.to_q.lora_A.default.weight", Peft),
        ] {
            assert_eq!(parsed(name), ("a.to_q".to_owned(), Down, Some(format)), "{name}");
        }
        assert_eq!(parsed("a.to_q.alpha"), ("a.to_q".to_owned(), Alpha, None));
    }

    #[test]
    fn every_spelling_of_a_magnitude_is_read() {
        for ending in ["dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"] {
            assert_eq!(parsed(&format!("a.to_q.{ending}")), ("a.to_q".to_owned(), Magnitude, None), "{ending}");
        }
    }

    #[test]
    fn old_attention_processors_get_todays_names() {
        let (stem, ..) = parsed("unet.mid_block.attn1.processor.to_out_lora.up.weight");
        assert_eq!(stem, "unet.mid_block.attn1.to_out.0");
        let (stem, ..) = parsed("text_encoder.layers.0.self_attn.to_out_lora.up.weight");
        assert_eq!(stem, "text_encoder.layers.0.self_attn.out_proj");
        let (stem, ..) = parsed("text_encoder.layers.0.self_attn.to_k_lora.up.weight");
        assert_eq!(stem, "text_encoder.layers.0.self_attn.k_proj");
    }

    #[test]
    fn other_kinds_are_recognised() {
        for (name, kind) in [
            ("x.magnitude", AdapterKind::Dora),
            ("x.hada_w1_a", AdapterKind::Loha),
            ("x.lokr_w2_b", AdapterKind::Lokr),
            ("x.oft_blocks", AdapterKind::Oft),
            ("x.lora_mid.weight", AdapterKind::TuckerLora),
            ("x.diff_b", AdapterKind::FullDifference),
            ("emb_params", AdapterKind::TextualInversion),
        ] {
            assert_eq!(Key::parse(name).unwrap().role, Foreign(kind), "{name}");
        }
    }

    #[test]
    fn weights_of_whole_models_are_no_keys() {
        assert_eq!(Key::parse("unet.conv_in.weight"), None);
        assert_eq!(Key::parse("lora"), None);
    }

    #[test]
    fn stems_name_their_component() {
        use Component::{TextEncoder, TextEncoder2, Unet};
        use Spelling::{Dotted, Underscored};
        assert_eq!(spelling("lora_te_text_model_x"), Underscored(TextEncoder, "text_model_x"));
        assert_eq!(spelling("lora_te2_text_model_x"), Underscored(TextEncoder2, "text_model_x"));
        assert_eq!(spelling("text_encoder_2.x.y"), Dotted(TextEncoder2, "x.y"));
        assert_eq!(spelling("base_model.model.mid_block.x"), Dotted(Unet, "mid_block.x"));
        assert_eq!(spelling("base_model.model.unet.x"), Dotted(Unet, "x"));
        assert_eq!(spelling("text_model.x"), Dotted(TextEncoder, "text_model.x"));
    }
}
