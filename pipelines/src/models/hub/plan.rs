//! Chooses the files of a repository that make up the model.

use std::collections::BTreeSet;

use serde_json::Value;

use super::listing::is_plain;

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
    /// Weights under names that are no plain paths.
    pub(super) unsafe_names: Vec<String>,
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
        let is_unsafe = |file: &&String| is_weights_of(component, file) && !is_plain(file);
        self.unsafe_names.extend(available.iter().filter(is_unsafe).cloned());
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
        let shard = |file: &str| Some((shard_of(file.strip_prefix(&beginning)?)?, file.to_owned()));
        let (places, mut files): (Vec<_>, Vec<_>) = available.iter().filter_map(|file| shard(file)).unzip();
        let count = places.first()?.1;
        let is_complete = places.iter().copied().eq((1..=count).map(|shard| (shard, count)));
        files.push(index);
        is_complete.then_some(files)
    }

    fn index_names(&self, component: &str) -> Vec<String> {
        let mut names = vec![format!("{component}/{}.safetensors.index.json", self.name())];
        if let Some(variant) = self.variant {
            names.push(format!("{component}/{}.safetensors.index.{variant}.json", self.model));
        }
        names
    }
}

/// The number of a shard and of all shards, in `00001-of-00004.safetensors`.
fn shard_of(ending: &str) -> Option<(usize, usize)> {
    const DIGITS: usize = 5;
    let (shard, count) = ending.strip_suffix(".safetensors")?.split_once("-of-")?;
    let number = |text: &str| {
        let is_number = text.len() == DIGITS && text.bytes().all(|letter| letter.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten()
    };
    Some((number(shard)?, number(count)?))
}

/// Whether a name of the listing claims to be weights of `component`.
fn is_weights_of(component: &str, file: &str) -> bool {
    let inside = file.strip_prefix(component).and_then(|file| file.strip_prefix('/'));
    inside.is_some_and(|file| {
        file.ends_with(".safetensors") && ["diffusion_pytorch_model", "model"].iter().any(|stem| file.starts_with(stem))
    })
}

/// The most bytes that a file of a model may have, whatever the hub says.
pub(super) fn largest(file: &str) -> u64 {
    const MEBIBYTE: u64 = 1 << 20;
    match file {
        weights if weights.ends_with(".safetensors") => 65536 * MEBIBYTE,
        vocabulary if vocabulary.starts_with("tokenizer") => 64 * MEBIBYTE,
        _configuration => 4 * MEBIBYTE,
    }
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

    #[test]
    fn a_shard_has_the_name_of_a_shard_and_nothing_else() {
        let index = "unet/diffusion_pytorch_model.safetensors.index.json";
        let shards = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| format!("unet/diffusion_pytorch_model-{name}")).collect();
            let mut files: Vec<&str> = names.iter().map(String::as_str).collect();
            files.push(index);
            plan(&files, WeightPrecision::Full)
        };
        let (one, two) = ("00001-of-00002.safetensors", "00002-of-00002.safetensors");
        assert_eq!(unet_files(&shards(&[one, two, "ema.safetensors"])).len(), 3);
        for wrong in [
            "00003-of-00002.safetensors",
            "00000-of-00002.safetensors",
            "2-of-2.safetensors",
            "00002-of-00002x.safetensors",
        ] {
            assert_eq!(shards(&[one, wrong]).missing.len(), 1, "{wrong}");
        }
        for wrong in
            ["/../../../../x-00001-of-00001.safetensors", "\u{1b}[2J-00001-of-00001.safetensors", "\\..\\x.safetensors"]
        {
            let plan = shards(&[one, two, wrong]);
            assert_eq!(plan.unsafe_names, [format!("unet/diffusion_pytorch_model-{wrong}")]);
            assert!(!plan.wanted.iter().any(|file| file.ends_with(wrong)));
        }
        let elsewhere = plan(&["../../evil", "/etc/passwd", "notes\u{7}.md"], WeightPrecision::Full);
        assert!(elsewhere.unsafe_names.is_empty());
    }
}
