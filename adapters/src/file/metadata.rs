//! The metadata in an adapter file's header, in the vocabularies of the tools that read it.
//!
//! The header of a safetensors file is a map of strings. It holds entries of four vocabularies: `ss_*` and `sshs_*` of
//! kohya's trainers, `modelspec.*` (Stability AI's model metadata standard 1.0.1), `lora_adapter_metadata` of
//! diffusers, and our own `catelier.*`.

use std::collections::BTreeMap;

use candle_core::Tensor;
use catelier_numerics::tensor_file;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::hash::{self, Hashes};
use super::privacy::{self, Disclosure};
use super::{Format, config};
use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::family::{BaseFamily, Prediction};
use crate::kind::UpdateKind;
use crate::update::LayerUpdate;

/// Version of our own entries.
pub const FORMAT_VERSION: &str = "1";

/// The metadata of an adapter file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    /// Title; the trigger if there is none.
    pub title: Option<String>,
    /// Description, one paragraph.
    pub description: Option<String>,
    /// Author.
    pub author: Option<String>,
    /// Licence of the adapter.
    pub license: Option<String>,
    /// Date of making, ISO 8601; given by the caller.
    pub date: Option<String>,
    /// The word that calls the trained style or subject.
    pub trigger: Option<String>,
    /// The base model it was trained on.
    pub base: TrainedOn,
    /// The resolved settings of the training, as JSON.
    pub settings: Option<Value>,
    /// Entries of other tools, kept unchanged; our own entries replace those of the same name.
    pub other: BTreeMap<String, String>,
    /// How much of the metadata is written.
    pub disclosure: Disclosure,
}

/// The base model an adapter was trained on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedOn {
    /// Its family, if it is a known one.
    pub family: Option<BaseFamily>,
    /// The prediction type of its UNet.
    pub prediction: Option<Prediction>,
    /// Width and height of the training images, in pixels.
    pub resolution: Option<(u32, u32)>,
    /// Its name or hub id.
    pub name: Option<String>,
    /// Its [`Fingerprint`](crate::Fingerprint), by which an adapter finds its base again.
    pub fingerprint: Option<String>,
}

impl TrainedOn {
    fn is_velocity(&self) -> bool {
        self.prediction == Some(Prediction::Velocity)
    }

    /// kohya's name of the base.
    fn version(&self) -> Option<&'static str> {
        Some(match (self.family?, self.is_velocity()) {
            (BaseFamily::Sd1, false) => "sd_v1",
            (BaseFamily::Sd1, true) => "sd_v1_v",
            (BaseFamily::Sd2, false) => "sd_v2",
            (BaseFamily::Sd2, true) => "sd_v2_v",
            (BaseFamily::Sdxl, _) => "sdxl_base_v1-0",
        })
    }

    /// The model specification's name of the adapter's architecture.
    fn architecture(&self) -> Option<&'static str> {
        Some(match (self.family?, self.is_velocity()) {
            (BaseFamily::Sd1, _) => "stable-diffusion-v1/lora",
            (BaseFamily::Sd2, false) => "stable-diffusion-v2-512/lora",
            (BaseFamily::Sd2, true) => "stable-diffusion-v2-768-v/lora",
            (BaseFamily::Sdxl, _) => "stable-diffusion-xl-v1-base/lora",
        })
    }
}

type Header = BTreeMap<String, String>;

impl Metadata {
    /// The header of a file with these tensors.
    pub(crate) fn header(
        &self,
        adapter: &Adapter,
        format: Format,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<Header> {
        let mut header = self.kept_entries();
        self.add_network(&mut header, adapter);
        add_hashes(&mut header, tensors)?;
        if format != Format::Kohya {
            header.insert("format".to_owned(), "pt".to_owned());
            header.insert(config::HEADER_ENTRY.to_owned(), config::header_of(adapter));
        }
        if self.disclosure != Disclosure::None {
            self.add_specification(&mut header, adapter, format);
            self.add_own(&mut header, adapter);
        }
        Ok(header)
    }

    /// Entries of other tools that [`disclosure`](Self::disclosure) allows.
    fn kept_entries(&self) -> Header {
        let told = |(name, value): &(&String, &String)| match self.disclosure {
            Disclosure::None => false,
            Disclosure::Minimal => !privacy::is_private(name, value),
            Disclosure::Full => true,
        };
        let kept = self.other.iter().filter(told);
        kept.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The entries that kohya's trainers always write.
    fn add_network(&self, header: &mut Header, adapter: &Adapter) {
        let mut add = |name: &str, value: String| header.insert(name.to_owned(), value);
        let dynamic = || "Dynamic".to_owned();
        let rank = adapter.uniform_rank();
        let alpha = adapter.uniform_alpha();
        add("ss_network_module", network_module(adapter).to_owned());
        add("ss_network_dim", rank.map_or_else(dynamic, |r| r.to_string()));
        add("ss_network_alpha", alpha.map_or_else(dynamic, |a| format!("{a:?}")));
        add("ss_network_args", network_arguments(adapter).to_string());
        if let Some(version) = self.base.version() {
            add("ss_base_model_version", version.to_owned());
            let v2 = self.base.family == Some(BaseFamily::Sd2);
            add("ss_v2", if v2 { "True" } else { "False" }.to_owned());
        }
    }

    /// The entries of the model specification.
    fn add_specification(&self, header: &mut Header, adapter: &Adapter, format: Format) {
        let title = self.title.as_ref().or(self.trigger.as_ref());
        let original_names = format == Format::Kohya && self.base.family == Some(BaseFamily::Sdxl);
        let implementation =
            if original_names { "https://github.com/Stability-AI/generative-models" } else { "diffusers" };
        let size = self.base.resolution.map(|(width, height)| format!("{width}x{height}"));
        let prediction = self.base.prediction.map(|p| p.name().to_owned());
        let entries = [
            ("sai_model_spec", Some("1.0.1".to_owned())),
            ("architecture", self.base.architecture().map(str::to_owned)),
            ("implementation", Some(implementation.to_owned())),
            ("title", Some(title.cloned().unwrap_or_else(|| kind_of(adapter).to_string()))),
            ("description", self.description.clone()),
            ("author", self.author.clone()),
            ("license", self.license.clone()),
            ("date", self.date.clone()),
            ("resolution", size),
            ("prediction_type", prediction),
            ("trigger_phrase", self.trigger.clone()),
            ("hash_sha256", header.get(hash::MODEL_HASH).map(|hash| format!("0x{hash}"))),
        ];
        for (name, value) in entries {
            if let Some(value) = value {
                header.insert(format!("modelspec.{name}"), value);
            }
        }
    }

    /// Our own entries.
    fn add_own(&self, header: &mut Header, adapter: &Adapter) {
        let full = self.disclosure == Disclosure::Full;
        let shown = |name: &String| full || !privacy::is_local_path(name);
        let settings = self
            .settings
            .as_ref()
            .map(|settings| if full { settings.to_string() } else { privacy::without_paths(settings).to_string() });
        let entries = [
            ("format_version", Some(FORMAT_VERSION.to_owned())),
            // A file without this entry is a LoRA: files older than the entry have no other kind.
            (
                "kind",
                Some(kind_of(adapter)).filter(|kind| *kind != UpdateKind::Lora).map(|kind| kind.name().to_owned()),
            ),
            ("base_fingerprint", self.base.fingerprint.clone()),
            ("base_name", self.base.name.clone().filter(shown)),
            ("trigger", self.trigger.clone()),
            ("settings", settings),
        ];
        for (name, value) in entries {
            if let Some(value) = value {
                header.insert(format!("catelier.{name}"), value);
            }
        }
    }

    /// Reads the header of a file that any tool wrote; entries that are not understood are kept in
    /// [`other`](Self::other).
    pub fn from_header(header: &BTreeMap<String, String>) -> Self {
        let text = |name: &str| header.get(name).cloned();
        let version = text("ss_base_model_version").or_else(|| text("modelspec.architecture"));
        let family = version.as_deref().and_then(BaseFamily::of_name);
        let base = TrainedOn {
            family,
            prediction: prediction_in(header),
            resolution: text("modelspec.resolution").as_deref().and_then(size_of),
            name: text("catelier.base_name"),
            fingerprint: text("catelier.base_fingerprint"),
        };
        Self {
            title: text("modelspec.title"),
            description: text("modelspec.description"),
            author: text("modelspec.author"),
            license: text("modelspec.license"),
            date: text("modelspec.date"),
            trigger: text("catelier.trigger").or_else(|| text("modelspec.trigger_phrase")),
            settings: text("catelier.settings").and_then(|json| serde_json::from_str(&json).ok()),
            other: others(header, family.is_some()),
            disclosure: Disclosure::default(),
            base,
        }
    }
}

/// Entries that writing replaces.
const WRITTEN: [&str; 25] = [
    tensor_file::CHECKSUM,
    "format",
    config::HEADER_ENTRY,
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    hash::MODEL_HASH,
    "sshs_legacy_hash",
    "modelspec.sai_model_spec",
    "modelspec.implementation",
    "modelspec.title",
    "modelspec.description",
    "modelspec.author",
    "modelspec.license",
    "modelspec.date",
    "modelspec.resolution",
    "modelspec.prediction_type",
    "modelspec.trigger_phrase",
    "modelspec.hash_sha256",
    "catelier.format_version",
    "catelier.kind",
    "catelier.base_fingerprint",
    "catelier.base_name",
    "catelier.trigger",
];

/// Entries that writing replaces if the base family is known.
const WRITTEN_FOR_FAMILY: [&str; 3] = ["ss_base_model_version", "ss_v2", "modelspec.architecture"];

fn others(header: &Header, family_known: bool) -> Header {
    let anew = |name: &str| {
        WRITTEN.contains(&name) || name == "catelier.settings" || family_known && WRITTEN_FOR_FAMILY.contains(&name)
    };
    let kept = header.iter().filter(|(name, _)| !anew(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn prediction_in(header: &Header) -> Option<Prediction> {
    let named = header.get("modelspec.prediction_type");
    let velocity = header.get("ss_base_model_version").is_some_and(|version| version.ends_with("_v"));
    match named {
        Some(name) => Prediction::of_name(name),
        None => velocity.then_some(Prediction::Velocity),
    }
}

fn size_of(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once('x').unwrap_or((text, text));
    Some((width.parse().ok()?, height.parse().ok()?))
}

/// The kind in the header: DoRA if one of the modules is a DoRA, else LoRA.
fn kind_of(adapter: &Adapter) -> UpdateKind {
    adapter.iter().map(|(_, update)| update.kind()).max().unwrap_or_default()
}

/// The trainer's module that makes such an adapter: sd-scripts' own for LoRA, LyCORIS for DoRA.
fn network_module(adapter: &Adapter) -> &'static str {
    match kind_of(adapter) {
        UpdateKind::Lora => "networks.lora",
        UpdateKind::Dora => "lycoris.kohya",
    }
}

/// The arguments of [`network_module`]: LyCORIS' settings of a DoRA, and rank and alpha of the convolutions if a kernel
/// is wider than one pixel.
fn network_arguments(adapter: &Adapter) -> Value {
    let wide = |update: &&LayerUpdate| update.is_convolution() && update.weight_shape()[2] > 1;
    let mut arguments = Map::new();
    if kind_of(adapter) == UpdateKind::Dora {
        let of_dora = [("algo", "lora"), ("dora_wd", "True"), ("wd_on_output", "True")];
        arguments.extend(of_dora.map(|(name, value)| (name.to_owned(), json!(value))));
    }
    if let Some(update) = adapter.iter().map(|(_, update)| update).find(wide) {
        arguments.insert("conv_dim".to_owned(), json!(update.rank().to_string()));
        arguments.insert("conv_alpha".to_owned(), json!(format!("{:?}", update.alpha())));
    }
    Value::Object(arguments)
}

/// Adds kohya's hashes, which cover a file that holds the tensors and the `ss_` entries alone.
fn add_hashes(header: &mut Header, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let training: Header = header
        .iter()
        .filter(|(name, _)| name.starts_with("ss_"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let hashes = Hashes::of(tensors, &training).map_err(Error::numerics("hashing the adapter"))?;
    header.insert(hash::MODEL_HASH.to_owned(), hashes.payload());
    header.insert("sshs_legacy_hash".to_owned(), hashes.legacy());
    Ok(())
}
