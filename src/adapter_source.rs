//! What `--adapter FILE[:WEIGHT]` names, opened and checked against the base.

use std::path::Path;

use catelier_adapters::file::{self, LoadedAdapter};
use catelier_adapters::{AdapterSet, Fingerprint};
use catelier_pipelines::base::BaseModel;
use catelier_prompts::Trigger;

use crate::failure::{Blame, Failure, Outcome};
use crate::terminal;

/// An adapter file and how strongly it is applied.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AdapterSource {
    pub(crate) path: String,
    pub(crate) weight: f64,
}

impl AdapterSource {
    /// `FILE` or `FILE:WEIGHT`; a colon that no number follows belongs to the file's name.
    pub(crate) fn parse(text: &str) -> Self {
        let parts = text.rsplit_once(':').and_then(|(path, weight)| Some((path, weight.parse::<f64>().ok()?)));
        match parts {
            Some((path, weight)) if !path.is_empty() => Self { path: path.to_string(), weight },
            _ => Self { path: text.to_string(), weight: 1.0 },
        }
    }
}

/// The adapters of a request, in its order.
pub(crate) struct LoadedAdapters {
    pub(crate) set: AdapterSet,
    pub(crate) files: Vec<(AdapterSource, LoadedAdapter)>,
}

impl LoadedAdapters {
    /// Reads every file for `base` and says what was matched.
    pub(crate) fn read(texts: &[String], base: &BaseModel) -> Outcome<Self> {
        let modules = base.modules();
        let mut loaded = Self { set: AdapterSet::base(), files: Vec::new() };
        for text in texts {
            let source = AdapterSource::parse(text);
            if !source.weight.is_finite() {
                return Err(Failure::request(format!("`{text}` has no finite weight"), "write it as `FILE:0.8`"));
            }
            let file = file::read(Path::new(&source.path), &modules)
                .request(format!("cannot apply adapter `{}` to base `{}`", source.path, base.name))?;
            terminal::say(&format!("adapter: {} ({}, weight {})", source.path, file.report, source.weight));
            warn_of_other_base(&source.path, &file, base);
            let adapter = file.adapter.to(base.device(), base.dtype()).run("cannot move the adapter to the device")?;
            loaded.set.push(&adapter, source.weight);
            loaded.files.push((source, file));
        }
        Ok(loaded)
    }

    /// The trigger that was given, or else the one that the first file names.
    pub(crate) fn trigger(&self, given: Option<&str>) -> Outcome<Option<Trigger>> {
        let known = self.files.iter().find_map(|(_, file)| file.metadata.trigger.as_deref());
        given.or(known).map(|word| Trigger::new(word).request(format!("cannot use the trigger `{word}`"))).transpose()
    }

    /// Name and hash of every file, for the text of a PNG.
    pub(crate) fn names_and_hashes(&self) -> Outcome<Vec<(String, String)>> {
        let name_and_hash = |(source, _): &(AdapterSource, LoadedAdapter)| {
            let inspection = file::inspect(Path::new(&source.path)).run("cannot hash the adapter")?;
            let stem = Path::new(&source.path).file_stem().unwrap_or_default();
            Ok((stem.to_string_lossy().into_owned(), inspection.model_hash))
        };
        self.files.iter().map(name_and_hash).collect()
    }
}

/// Bases that were trained apart can have the same shapes; the fingerprint tells them apart.
fn warn_of_other_base(path: &str, file: &LoadedAdapter, base: &BaseModel) {
    let trained_on = &file.metadata.base;
    let own = Fingerprint::parse(&base.fingerprint);
    if trained_on.fingerprint.as_ref().is_some_and(|fingerprint| !Fingerprint::parse(fingerprint).agrees_with(own)) {
        let name = trained_on.name.as_deref().unwrap_or("another base");
        terminal::warn(&format!("`{path}` was trained on `{name}`, which is not `{}`", base.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_follows_the_last_colon() {
        let parsed = |text| {
            let source = AdapterSource::parse(text);
            (source.path, source.weight)
        };
        assert_eq!(parsed("a.safetensors"), ("a.safetensors".into(), 1.0));
        assert_eq!(parsed("a.safetensors:0.5"), ("a.safetensors".into(), 0.5));
        assert_eq!(parsed("c:/a.safetensors"), ("c:/a.safetensors".into(), 1.0));
        assert_eq!(parsed("a:b:-1"), ("a:b".into(), -1.0));
    }
}
