//! The identity of a run, which a resumed run must share with the saved one.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::DType;
use catelier_adapters::Adapter;
use catelier_numerics::hex;
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{EncodedDataset, StartingPoint, TrainConfig, TrainError};
use crate::models::base::BaseModel;

/// The part that holds the digest of the start adapter.
const START: &str = "start";
/// The part that holds the settings as JSON.
const SETTINGS: &str = "settings";

/// Base, dataset, start adapter and settings of a run. The number of steps is left out, so a resumed run may change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunFingerprint([(&'static str, String); 4]);

impl RunFingerprint {
    /// The fingerprint of a run on `base` and `dataset` that starts from `start`, or from a fresh adapter.
    ///
    /// # Errors
    /// [`TrainError::Fingerprint`] when the settings cannot be serialized.
    pub(super) fn new(
        base: &BaseModel,
        dataset: &EncodedDataset,
        start: Option<&StartingPoint>,
        config: &TrainConfig,
    ) -> Result<Self, TrainError> {
        let start = start.map(digest).transpose()?.unwrap_or_else(|| "fresh".into());
        Ok(Self([
            ("base", base.fingerprint.clone()),
            ("dataset", dataset.digest().to_owned()),
            (START, start),
            (SETTINGS, json(&TrainConfig { steps: 0, ..config.clone() })?),
        ]))
    }

    /// The fingerprint of the run that is also trained towards what has this digest.
    pub(super) fn beside(&self, digest: &str) -> Self {
        let with = |(name, value): &(&'static str, String)| match *name {
            START => (START, format!("{value} {digest}")),
            name => (name, value.clone()),
        };
        Self(self.0.each_ref().map(with))
    }

    /// Names and values of its parts.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Sixteen hexadecimal digits that name the run, the same whenever it is resumed.
    pub(super) fn run_id(&self) -> String {
        let mut hash = Sha256::new();
        for (_, value) in self.parts() {
            hash.update((value.len() as u64).to_le_bytes());
            hash.update(value);
        }
        hex::encode(&hash.finalize()[..8])
    }

    /// The part in which the run that saved `metadata` differs from this one; `None` for this run.
    pub(super) fn difference(&self, metadata: &BTreeMap<String, String>) -> Option<String> {
        let saved = |name: &str| metadata.get(name).map_or("absent", String::as_str);
        let (name, value) = self.parts().find(|(name, value)| saved(name) != *value)?;
        Some(match name {
            SETTINGS => settings_difference(saved(name), value),
            START => "it was saved with another start adapter, or with another part of it frozen".into(),
            _ => format!("it was saved with another {name}"),
        })
    }
}

/// The settings that differ, as JSON objects.
fn settings_difference(saved: &str, asked: &str) -> String {
    let [saved, asked] =
        [saved, asked].map(|text| serde_json::from_str::<Map<String, Value>>(text).unwrap_or_default());
    let names: BTreeSet<&String> = saved.keys().chain(asked.keys()).collect();
    let value = |settings: &Map<String, Value>, name: &str| settings.get(name).cloned().unwrap_or_default();
    let differing = names.into_iter().filter(|name| saved.get(*name) != asked.get(*name));
    let told: Vec<String> = differing
        .map(|name| format!("its `{name}` is {}, and this run has {}", value(&saved, name), value(&asked, name)))
        .collect();
    told.join("; ")
}

/// The settings as JSON. A fixed text for settings that do not serialize would make different runs look the same, so
/// that is an error.
fn json(settings: &impl Serialize) -> Result<String, TrainError> {
    serde_json::to_string(settings).map_err(TrainError::Fingerprint)
}

/// SHA-256 in hexadecimal digits over the parameters of the adapter from which training starts and its scales, and over
/// what is asked beside them.
fn digest(start: &StartingPoint) -> Result<String, TrainError> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add_adapter(&start.adapter, &mut add)?;
    if !start.is_plain() {
        start.frozen.iter().for_each(|name| add(name.as_bytes()));
        add(&start.proximal.to_le_bytes());
        start.merged.as_ref().map_or(Ok(()), |merged| add_adapter(merged, &mut add))?;
    }
    Ok(hex::encode(hash.finalize()))
}

fn add_adapter(adapter: &Adapter, add: &mut impl FnMut(&[u8])) -> Result<(), TrainError> {
    for (path, update) in adapter.iter() {
        add(path.as_bytes());
        add(&update.scale().to_le_bytes());
    }
    let (_, parameters) = adapter.trainable(&candle_core::Device::Cpu)?;
    for (name, parameter) in parameters.iter() {
        add(name.as_bytes());
        add(format!("{:?}", parameter.dims()).as_bytes());
        let values = parameter.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        add(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde::Serializer;

    use super::*;

    /// Settings that fail to serialize.
    struct Unwritable;

    impl Serialize for Unwritable {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no settings"))
        }
    }

    #[test]
    fn only_the_settings_that_differ_are_told() {
        let told = settings_difference(r#"{"rank":4,"seed":1,"flip":true}"#, r#"{"rank":2,"seed":1}"#);
        assert_eq!(told, "its `flip` is true, and this run has null; its `rank` is 4, and this run has 2");
    }

    #[test]
    fn settings_that_do_not_serialize_are_an_error_and_not_the_same_run() {
        let error = json(&Unwritable).unwrap_err();
        assert!(matches!(error, TrainError::Fingerprint(_)), "{error}");
    }
}
