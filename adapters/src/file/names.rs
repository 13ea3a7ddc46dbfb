//! Looks up the names in a file among the modules of a base model, without guessing.

use std::collections::{HashMap, HashSet};

use super::blocks::{BlockCount, block_of};
use super::key::{Spelling, spelling};
use crate::module::{Component, ModuleInfo};

/// All names of the modules of a base model, in every spelling.
pub(crate) struct NameIndex<'m> {
    by_path: HashMap<&'m str, &'m ModuleInfo>,
    /// Underscored names; `None` if two modules have the same one.
    by_underscored: HashMap<(Component, String), Option<&'m ModuleInfo>>,
    components: HashSet<Component>,
}

/// The module that a name in a file stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place<'m> {
    /// A module of the base.
    Module(&'m ModuleInfo),
    /// The path of a module of a text encoder whose modules were not given.
    Unlisted(String),
    /// No known module.
    Nowhere,
}

impl<'m> NameIndex<'m> {
    /// Indexes the names of all modules: their paths, the paths with underscores, and for a UNet the original names
    /// with underscores.
    pub(crate) fn new(modules: &'m [ModuleInfo]) -> Self {
        let mut index = Self { by_path: HashMap::new(), by_underscored: HashMap::new(), components: HashSet::new() };
        let count = BlockCount::of(modules);
        let with_attention = blocks_with_attention(modules);
        for module in modules {
            let Some((component, inside)) = Component::of_path(&module.path) else {
                continue;
            };
            index.components.insert(component);
            index.by_path.insert(&module.path, module);
            index.add(component, inside.replace('.', "_"), module);
            if component == Component::Unet {
                let has_attention = with_attention.contains(block_of(inside));
                if let Some(name) = count.original_name(inside, has_attention) {
                    index.add(component, name, module);
                }
            }
        }
        index
    }

    fn add(&mut self, component: Component, name: String, module: &'m ModuleInfo) {
        self.by_underscored
            .entry((component, name))
            .and_modify(|taken| {
                if taken.is_some_and(|other| other != module) {
                    *taken = None;
                }
            })
            .or_insert(Some(module));
    }

    /// Whether the base's modules include any of this component.
    pub(crate) fn lists(&self, component: Component) -> bool {
        self.components.contains(&component)
    }

    /// The module that `stem` stands for.
    pub(crate) fn find(&self, stem: &str) -> Place<'m> {
        let (component, found, unlisted) = match spelling(stem) {
            Spelling::Underscored(component, name) => {
                (component, self.underscored(component, name), dotted_text_path(name))
            }
            Spelling::Dotted(component, path) => {
                (component, self.dotted(component, path), dotted_text_path(&path.replace('.', "_")))
            }
        };
        if let Some(module) = found {
            return Place::Module(module);
        }
        match unlisted {
            Some(path) if component != Component::Unet && !self.lists(component) => {
                Place::Unlisted(component.path(&path))
            }
            _ => Place::Nowhere,
        }
    }

    fn underscored(&self, component: Component, name: &str) -> Option<&'m ModuleInfo> {
        let get = |name: String| self.by_underscored.get(&(component, name)).copied().flatten();
        get(name.to_owned()).or_else(|| {
            let other = other_text_name(component, name, "text_model_")?;
            get(other)
        })
    }

    fn dotted(&self, component: Component, path: &str) -> Option<&'m ModuleInfo> {
        let get = |path: &str| self.by_path.get(component.path(path).as_str()).copied();
        get(path).or_else(|| get(&other_text_name(component, path, "text_model.")?))
    }
}

/// The other name of a text encoder's module: newer files leave out the first segment, older ones have it.
fn other_text_name(component: Component, name: &str, segment: &str) -> Option<String> {
    if component == Component::Unet {
        return None;
    }
    Some(match name.strip_prefix(segment) {
        Some(rest) => rest.to_owned(),
        None => format!("{segment}{name}"),
    })
}

fn blocks_with_attention(modules: &[ModuleInfo]) -> HashSet<&str> {
    modules
        .iter()
        .filter_map(|module| Component::of_path(&module.path))
        .filter(|(component, inside)| *component == Component::Unet && inside.contains(".attentions."))
        .map(|(_, inside)| block_of(inside))
        .collect()
}

/// The linear layers of a CLIP text encoder layer: the underscored name and the end of the path.
const TEXT_LAYER: [(&str, &str); 6] = [
    ("self_attn_q_proj", "self_attn.q_proj"),
    ("self_attn_k_proj", "self_attn.k_proj"),
    ("self_attn_v_proj", "self_attn.v_proj"),
    ("self_attn_out_proj", "self_attn.out_proj"),
    ("mlp_fc1", "mlp.fc1"),
    ("mlp_fc2", "mlp.fc2"),
];

/// The path inside a CLIP text encoder that an underscored name stands for. CLIP's names are
/// fixed, so no module list is needed.
fn dotted_text_path(name: &str) -> Option<String> {
    if name == "text_projection" {
        return Some(name.to_owned());
    }
    let name = name.strip_prefix("text_model_").unwrap_or(name);
    let (layer, module) = name.strip_prefix("encoder_layers_")?.split_once('_')?;
    let layer: u16 = layer.parse().ok()?;
    let (_, module) = TEXT_LAYER.iter().find(|(underscored, _)| *underscored == module)?;
    Some(format!("text_model.encoder.layers.{layer}.{module}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::ModuleKind;

    fn modules(paths: &[&str]) -> Vec<ModuleInfo> {
        let kind = ModuleKind::Linear { in_features: 4, out_features: 4 };
        paths.iter().map(|path| ModuleInfo { path: (*path).to_owned(), kind }).collect()
    }

    #[track_caller]
    fn assert_found(modules: &[ModuleInfo], stem: &str, path: &str) {
        match NameIndex::new(modules).find(stem) {
            Place::Module(module) => assert_eq!(module.path, path),
            other => panic!("{stem}: {other:?}"),
        }
    }

    #[test]
    fn one_module_is_found_by_all_its_names() {
        let path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0";
        let base = modules(&[path, "unet.down_blocks.1.attentions.1.proj_in"]);
        let tail = "attentions_0_transformer_blocks_0_attn1_to_out_0";
        for stem in [
            format!("lora_unet_down_blocks_1_{tail}"),
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0".to_owned(),
            path.to_owned(),
            path.replace("unet.", ""),
            path.replace("unet.", "base_model.model."),
        ] {
            assert_found(&base, &stem, path);
        }
    }

    #[test]
    fn a_name_of_no_module_is_nowhere() {
        let base = modules(&["unet.mid_block.attentions.0.proj_in"]);
        let index = NameIndex::new(&base);
        assert_eq!(index.find("lora_unet_mid_block_attentions_1_proj_in"), Place::Nowhere);
        assert_eq!(index.find("transformer.blocks.0.attn.to_q"), Place::Nowhere);
        assert_eq!(index.find("lora_te_text_model_encoder_layers_0_mlp_fc9"), Place::Nowhere);
    }

    #[test]
    fn a_name_that_two_modules_share_is_not_guessed() {
        let base = modules(&["unet.a.b_c", "unet.a_b.c"]);
        assert_eq!(NameIndex::new(&base).find("lora_unet_a_b_c"), Place::Nowhere);
        assert_found(&base, "unet.a_b.c", "unet.a_b.c");
    }

    #[test]
    fn text_encoders_that_are_not_listed_get_their_fixed_names() {
        let base = modules(&["unet.conv_in"]);
        let index = NameIndex::new(&base);
        let path = "text_encoder_2.text_model.encoder.layers.11.self_attn.out_proj".to_owned();
        let stem = "lora_te2_text_model_encoder_layers_11_self_attn_out_proj";
        assert_eq!(index.find(stem), Place::Unlisted(path.clone()));
        assert_eq!(index.find(&path), Place::Unlisted(path));
    }

    #[test]
    fn text_encoders_that_are_listed_are_taken_as_listed() {
        let path = "text_encoder.encoder.layers.0.mlp.fc1";
        let base = modules(&[path]);
        assert_found(&base, "lora_te_text_model_encoder_layers_0_mlp_fc1", path);
        assert_found(&base, "text_encoder.text_model.encoder.layers.0.mlp.fc1", path);
        let missing = "lora_te_text_model_encoder_layers_1_mlp_fc1";
        assert_eq!(NameIndex::new(&base).find(missing), Place::Nowhere);
    }
}
