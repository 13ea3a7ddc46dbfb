//! Chooses the files of a repository that make up the model.

use std::collections::BTreeSet;

use serde_json::Value;

/// The file that lists the components of a diffusers folder.
pub(super) const INDEX: &str = "model_index.json";

/// The preferred precision of weights, if a repository has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightPrecision {
    /// Full precision, or half if there is no other.
    Full,
    /// The `fp16` variant at half the size, or full precision if there is no other.
    Half,
}

/// The files of a model: files to fetch, and files that are missing.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) wanted: Vec<String>,
    pub(super) missing: Vec<String>,
    /// Components that have pickle files only, with those files.
    pub(super) pickles: Vec<(String, Vec<String>)>,
}

const NETWORKS: [&str; 4] = ["unet", "vae", "text_encoder", "text_encoder_2"];
const TOKENIZERS: [&str; 2] = ["tokenizer", "tokenizer_2"];
const TOKENIZER_EXTRAS: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

impl Plan {
    /// Chooses among the `available` files by the components named in `index` (`model_index.json`).
    pub(super) fn make(index: &Value, available: &BTreeSet<String>, precision: WeightPrecision) -> Self {
        let mut plan = Self { wanted: vec![INDEX.into()], ..Self::default() };
        plan.require(available, "scheduler/scheduler_config.json".into());
        for component in TOKENIZERS.into_iter().filter(|name| is_component(index, name)) {
            plan.add_tokenizer(component, available);
        }
        for component in NETWORKS.into_iter().filter(|name| is_component(index, name)) {
            plan.require(available, format!("{component}/config.json"));
            plan.add_weights(component, available, precision);
        }
        plan
    }

    fn require(&mut self, available: &BTreeSet<String>, file: String) {
        let list = if available.contains(&file) { &mut self.wanted } else { &mut self.missing };
        list.push(file);
    }

    fn add_tokenizer(&mut self, component: &str, available: &BTreeSet<String>) {
        let path = |file: &str| format!("{component}/{file}");
        let pair = ["vocab.json", "merges.txt"].map(path);
        let whole = path("tokenizer.json");
        if !pair.iter().all(|file| available.contains(file)) && available.contains(&whole) {
            self.wanted.push(whole);
        } else {
            pair.into_iter().for_each(|file| self.require(available, file));
        }
        self.wanted.extend(TOKENIZER_EXTRAS.map(path).into_iter().filter(|file| available.contains(file)));
    }

    fn add_weights(&mut self, component: &str, available: &BTreeSet<String>, precision: WeightPrecision) {
        let stems = weight_stems(component, precision);
        if let Some(files) = stems.iter().find_map(|stem| stem.files(component, available)) {
            self.wanted.extend(files);
            return;
        }
        let folder = format!("{component}/");
        let is_pickle = |file: &&String| file.starts_with(&folder) && file.ends_with(".bin");
        let pickles: Vec<String> = available.iter().filter(is_pickle).cloned().collect();
        if pickles.is_empty() {
            self.missing.push(format!("{component}/{}.safetensors", stems[0].name()));
        } else {
            self.pickles.push((component.into(), pickles));
        }
    }
}

/// Whether `model_index.json` names a class for the component.
fn is_component(index: &Value, component: &str) -> bool {
    index.get(component).and_then(|entry| entry.get(0)).is_some_and(Value::is_string)
}

/// A file name of weights, `diffusion_pytorch_model` or `model`, followed by the variant.
struct Stem {
    model: &'static str,
    variant: Option<&'static str>,
}

fn weight_stems(component: &str, precision: WeightPrecision) -> Vec<Stem> {
    let models = if component.starts_with("text_encoder") {
        ["model", "diffusion_pytorch_model"]
    } else {
        ["diffusion_pytorch_model", "model"]
    };
    let variants = match precision {
        WeightPrecision::Full => [None, Some("fp16")],
        WeightPrecision::Half => [Some("fp16"), None],
    };
    variants.iter().flat_map(|&variant| models.map(|model| Stem { model, variant })).collect()
}

impl Stem {
    fn name(&self) -> String {
        match self.variant {
            Some(variant) => format!("{}.{variant}", self.model),
            None => self.model.into(),
        }
    }

    /// The single file, or the index and all of its shards.
    fn files(&self, component: &str, available: &BTreeSet<String>) -> Option<Vec<String>> {
        let name = self.name();
        let whole = format!("{component}/{name}.safetensors");
        if available.contains(&whole) {
            return Some(vec![whole]);
        }
        let index = self.index_names(component).into_iter().find(|index| available.contains(index))?;
        let beginning = format!("{component}/{name}-");
        let mut files: Vec<String> = available
            .iter()
            .filter(|file| file.starts_with(&beginning) && file.ends_with(".safetensors"))
            .cloned()
            .collect();
        let complete = shard_count(files.first()?)? == files.len();
        files.push(index);
        complete.then_some(files)
    }

    fn index_names(&self, component: &str) -> Vec<String> {
        let mut names = vec![format!("{component}/{}.safetensors.index.json", self.name())];
        if let Some(variant) = self.variant {
            names.push(format!("{component}/{}.safetensors.index.{variant}.json", self.model));
        }
        names
    }
}

/// The number of shards in a name that ends in `-00001-of-00004.safetensors`.
fn shard_count(file: &str) -> Option<usize> {
    file.strip_suffix(".safetensors")?.rsplit_once("-of-")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(files: &[&str], precision: WeightPrecision) -> Plan {
        let index = serde_json::json!({
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": [null, null],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
        });
        let always = [
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
            "safety_checker/model.safetensors",
            "v1-5-pruned.ckpt",
        ];
        let available = always.iter().chain(files).map(|file| (*file).to_owned()).collect();
        Plan::make(&index, &available, precision)
    }

    fn unet_files(plan: &Plan) -> Vec<&str> {
        let weights = plan.wanted.iter().filter(|file| file.starts_with("unet/diffusion"));
        weights.map(String::as_str).collect()
    }

    #[test]
    fn only_what_is_needed_is_wanted() {
        let plan = plan(&["unet/diffusion_pytorch_model.safetensors", "README.md"], WeightPrecision::Full);
        assert_eq!(plan.wanted.len(), 8, "{:?}", plan.wanted);
        assert!(plan.missing.is_empty() && plan.pickles.is_empty());
    }

    #[test]
    fn the_variant_follows_the_precision_asked_for() {
        let both = ["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"];
        assert_eq!(unet_files(&plan(&both, WeightPrecision::Full)), [both[0]]);
        assert_eq!(unet_files(&plan(&both, WeightPrecision::Half)), [both[1]]);
        assert_eq!(unet_files(&plan(&both[..1], WeightPrecision::Half)), [both[0]]);
    }

    #[test]
    fn shards_come_with_their_index_and_all_together() {
        let shards = [
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ];
        assert_eq!(unet_files(&plan(&shards, WeightPrecision::Full)), shards);
        let torn = plan(&shards[1..], WeightPrecision::Full);
        assert_eq!(torn.missing, ["unet/diffusion_pytorch_model.safetensors"]);
    }

    #[test]
    fn pickles_are_reported_apart_from_missing_files() {
        let plan = plan(&["unet/diffusion_pytorch_model.bin"], WeightPrecision::Full);
        assert!(plan.missing.is_empty());
        assert_eq!(plan.pickles, [("unet".into(), vec!["unet/diffusion_pytorch_model.bin".into()])]);
    }
}
