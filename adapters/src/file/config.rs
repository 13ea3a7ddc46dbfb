//! PEFT's adapter configuration, from `adapter_config.json` or the header of a diffusers file.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::kind::{AdapterKind, UpdateKind};
use crate::module::Component;
use crate::update::LayerUpdate;

/// Header entry in which diffusers keeps the configurations of all components; keys have the component as prefix.
pub(crate) const HEADER_ENTRY: &str = "lora_adapter_metadata";

/// First segment of the paths of a text encoder's modules, which transformers 5 leaves out. PEFT compares ends of
/// paths, so a target without it matches either way.
const TEXT_PREFIX: &str = "text_model.";

/// The alphas and the kind of update in a PEFT configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PeftConfig {
    alpha: Option<f64>,
    alpha_pattern: BTreeMap<String, f64>,
    rank_stabilised: bool,
    decomposed: bool,
    other_kind: Option<AdapterKind>,
}

impl PeftConfig {
    /// Reads `adapter_config.json`.
    pub(crate) fn from_json(origin: &str, text: &[u8]) -> Result<Self> {
        let fail = |reason: String| Error::Configuration { origin: origin.to_owned(), reason };
        let value: Value = serde_json::from_slice(text).map_err(|error| fail(error.to_string()))?;
        let map = value.as_object().ok_or_else(|| fail("expected a JSON object".to_owned()))?;
        Self::from_map(map).map_err(fail)
    }

    /// Reads the configurations that diffusers keeps in one JSON text, by component.
    pub(crate) fn from_header(text: &str) -> Result<BTreeMap<Component, Self>> {
        let fail = |reason: String| Error::Configuration { origin: HEADER_ENTRY.to_owned(), reason };
        let all: Map<String, Value> = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        let mut configs = BTreeMap::new();
        for component in Component::ALL {
            let own: Map<String, Value> =
                all.iter().filter_map(|(key, value)| Some((strip(key, component)?, value.clone()))).collect();
            if !own.is_empty() {
                configs.insert(component, Self::from_map(&own).map_err(fail)?);
            }
        }
        Ok(configs)
    }

    fn from_map(map: &Map<String, Value>) -> Result<Self, String> {
        let flag = |name: &str| map.get(name).and_then(Value::as_bool).unwrap_or(false);
        Ok(Self {
            alpha: number(map, "lora_alpha")?,
            alpha_pattern: pattern(map, "alpha_pattern")?,
            rank_stabilised: flag("use_rslora"),
            decomposed: flag("use_dora"),
            other_kind: other_kind(map)?,
        })
    }

    /// The configured kind of adapter, if it is a kind that cannot be applied.
    pub(crate) fn other_kind(&self) -> Option<AdapterKind> {
        self.other_kind
    }

    /// Whether every module has magnitudes: `use_dora`.
    pub(crate) fn is_decomposed(&self) -> bool {
        self.decomposed
    }

    /// Alpha of the module with the path `inside` its component, such that `alpha / rank` is the scale that PEFT uses;
    /// `None` if the configuration has no alpha.
    pub(crate) fn alpha_of(&self, inside: &str, rank: usize) -> Option<f64> {
        let own = self.alpha_pattern.iter().find(|(key, _)| names(key, inside));
        let alpha = own.map(|(_, alpha)| *alpha).or(self.alpha)?;
        let stabilised = if self.rank_stabilised { (rank as f64).sqrt() } else { 1.0 };
        Some(alpha * stabilised)
    }
}

fn strip(key: &str, component: Component) -> Option<String> {
    let rest = key.strip_prefix(component.name())?.strip_prefix('.')?;
    Some(rest.to_owned())
}

fn number(map: &Map<String, Value>, name: &str) -> Result<Option<f64>, String> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| format!("`{name}` should be a number, found `{value}`")),
    }
}

fn pattern(map: &Map<String, Value>, name: &str) -> Result<BTreeMap<String, f64>, String> {
    let Some(Value::Object(entries)) = map.get(name) else {
        return Ok(BTreeMap::new());
    };
    let entry = |(key, value): (&String, &Value)| {
        let number =
            value.as_f64().ok_or_else(|| format!("`{name}` of `{key}` should be a number, found `{value}`"))?;
        Ok((key.clone(), number))
    };
    entries.iter().map(entry).collect()
}

fn other_kind(map: &Map<String, Value>) -> Result<Option<AdapterKind>, String> {
    let Some(name) = map.get("peft_type").and_then(Value::as_str) else {
        return Ok(None);
    };
    match name.to_ascii_uppercase().as_str() {
        "LORA" => Ok(None),
        "LOHA" => Ok(Some(AdapterKind::Loha)),
        "LOKR" => Ok(Some(AdapterKind::Lokr)),
        "OFT" | "BOFT" | "HRA" => Ok(Some(AdapterKind::Oft)),
        "IA3" => Ok(Some(AdapterKind::Ia3)),
        _ => Err(format!("expected peft_type `LORA`, found `{name}`")),
    }
}

/// Whether a pattern key matches the path: its end after a dot, or with `^` the whole path.
fn names(key: &str, inside: &str) -> bool {
    let plain = key.trim_end_matches('$').replace("\\.", ".");
    match plain.strip_prefix('^') {
        Some(whole) => whole == inside,
        None => inside.strip_suffix(plain.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.')),
    }
}

/// The configuration of one component's updates, as PEFT writes it.
///
/// Targets are whole module paths, since short names would also match modules without factors. Paths of text encoders
/// start after the segment that some versions of transformers leave out.
pub(crate) fn config_of(adapter: &Adapter, component: Component) -> Map<String, Value> {
    let own: Vec<(&str, &LayerUpdate)> = adapter
        .iter()
        .filter_map(|(path, update)| {
            let (of, inside) = Component::of_path(path)?;
            (of == component).then_some((inside.strip_prefix(TEXT_PREFIX).unwrap_or(inside), update))
        })
        .collect();
    let rank = most_common(own.iter().map(|(_, update)| update.rank() as f64));
    let alpha = most_common(own.iter().map(|(_, update)| update.alpha()));
    let differing = |usual: f64, of: &dyn Fn(&LayerUpdate) -> f64| -> Map<String, Value> {
        own.iter()
            .filter(|(_, update)| of(update) != usual)
            .map(|(inside, update)| ((*inside).to_owned(), plain_number(of(update))))
            .collect()
    };
    let targets: Vec<&str> = own.iter().map(|(inside, _)| *inside).collect();
    let entries = [
        ("alpha_pattern", Value::Object(differing(alpha, &LayerUpdate::alpha))),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(false)),
        ("init_lora_weights", json!(true)),
        ("lora_alpha", plain_number(alpha)),
        ("lora_dropout", json!(0.0)),
        ("peft_type", json!("LORA")),
        ("r", plain_number(rank)),
        ("rank_pattern", Value::Object(differing(rank, &|update| update.rank() as f64))),
        ("target_modules", json!(targets)),
        ("use_dora", json!(adapter.uniform_kind() == Some(UpdateKind::Dora))),
        ("use_rslora", json!(false)),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The configurations of all components as diffusers keeps them in the header.
pub(crate) fn header_of(adapter: &Adapter) -> String {
    let mut all = Map::new();
    for component in adapter.components().into_keys() {
        for (key, value) in config_of(adapter, component) {
            all.insert(component.path(&key), value);
        }
    }
    format!("{:#}", Value::Object(all))
}

/// An integer if `number` has no fraction, as PEFT's types require; otherwise the digits of its f32 value, which are as
/// precise as alpha tensors and stay the same when the file is read and written again.
fn plain_number(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return json!(number as i64);
    }
    json!((number as f32).to_string().parse::<f64>().unwrap_or(number))
}

/// The most common value; the smallest of equally common ones; 0 if there are no values.
fn most_common(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let runs = sorted.chunk_by(|left, right| left == right);
    let longest = runs.fold(&[][..], |best: &[f64], run| if run.len() > best.len() { run } else { best });
    longest.first().copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    fn config(text: &str) -> PeftConfig {
        PeftConfig::from_json("adapter_config.json", text.as_bytes()).unwrap()
    }

    #[test]
    fn patterns_go_before_the_common_alpha() {
        let config = config(
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8,
                "alpha_pattern": {"attn2.to_k": 2, "^mid.to_q": 3, "to\\.v": 5}}"#,
        );
        assert_eq!(config.alpha_of("down.attn2.to_k", 4), Some(2.0));
        assert_eq!(config.alpha_of("mid.to_q", 4), Some(3.0));
        assert_eq!(config.alpha_of("a.mid.to_q", 4), Some(8.0));
        assert_eq!(config.alpha_of("mid.to.v", 4), Some(5.0));
        assert_eq!(config.alpha_of("down.xattn2.to_k", 4), Some(8.0));
    }

    #[test]
    fn rank_stabilised_scale_is_alpha_over_the_root_of_the_rank() {
        let config = config(r#"{"lora_alpha": 8, "use_rslora": true}"#);
        let alpha = config.alpha_of("x", 16).unwrap();
        assert!((alpha / 16.0 - 8.0 / 4.0).abs() < 1e-12);
    }

    #[test]
    fn silence_about_alpha_is_not_a_value() {
        assert_eq!(config("{}").alpha_of("x", 4), None);
    }

    #[test]
    fn components_are_kept_apart() {
        let text = r#"{"unet.lora_alpha": 8, "text_encoder.lora_alpha": 4, "text_encoder_2.lora_alpha": 2}"#;
        let configs = PeftConfig::from_header(text).unwrap();
        let alpha = |component| configs[&component].alpha_of("x", 1);
        assert_eq!(alpha(Component::Unet), Some(8.0));
        assert_eq!(alpha(Component::TextEncoder), Some(4.0));
        assert_eq!(alpha(Component::TextEncoder2), Some(2.0));
    }

    #[test]
    fn other_kinds_are_told_by_their_type() {
        let kind = |text| config(text).other_kind();
        assert_eq!(kind(r#"{"use_dora": true}"#), None);
        assert_eq!(kind(r#"{"peft_type": "LOHA"}"#), Some(AdapterKind::Loha));
        assert_eq!(kind(r#"{"peft_type": "LORA"}"#), None);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in ["[]", "{", r#"{"lora_alpha": "8"}"#, r#"{"peft_type": "VERA"}"#] {
            let error = PeftConfig::from_json("adapter_config.json", text.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::Configuration { .. }), "{text}");
        }
    }

    #[test]
    fn text_encoder_targets_are_named_as_every_version_finds_them() {
        let ones = |rows, columns| Tensor::ones((rows, columns), DType::F32, &Device::Cpu).unwrap();
        let factors = crate::LoraFactors::new(ones(2, 3), ones(4, 2), 3.5).unwrap();
        let path = "text_encoder.text_model.encoder.layers.0.mlp.fc1".to_owned();
        let header: Value = serde_json::from_str(&header_of(&Adapter::from_iter([(path, factors)]))).unwrap();
        assert_eq!(header["text_encoder.target_modules"], json!(["encoder.layers.0.mlp.fc1"]));
        assert_eq!((&header["text_encoder.r"], &header["text_encoder.lora_alpha"]), (&json!(2), &json!(3.5)));
    }

    #[test]
    fn the_most_common_value_is_the_usual_one() {
        assert!((most_common([4.0, 8.0, 4.0, 2.0].into_iter()) - 4.0).abs() < 1e-12);
        assert!(most_common([].into_iter()).abs() < 1e-12);
    }
}
